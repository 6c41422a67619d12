"""Folders as training frameworks lay them out, made by torch.save: Megatron-LM, Lightning, Orbax."""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import save_file

import arzstream
from arzstream.archive.difference import diff


def model(seed: int = 1) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {
        "embedding.word_embeddings.weight": torch.randn(65, 32, generator=dice),
        "decoder.layers.0.self_attention.linear_qkv.weight": torch.randn(96, 32, generator=dice),
        "decoder.layers.0.mlp.linear_fc1.weight": torch.randn(128, 32, generator=dice),
        "decoder.final_layernorm.weight": torch.ones(32),
    }


def packed(source: Path, dest: Path, parent: Path | None = None) -> Path:
    """Packed, and compared with what comes back."""
    arzstream.pack(source, dest, parent=parent)
    out = dest.with_suffix(".out")
    arzstream.unpack(dest, out)
    for place, _, names in os.walk(source):
        there = out / os.path.relpath(place, source)
        assert filecmp.cmpfiles(place, there, names, shallow=False) == (names, [], [])
    return dest


# ------------------------------------------------------------------------------------------------ Megatron-LM


def megatron_legacy(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """``iter_0000010/mp_rank_XX/model_optim_rng.pt`` for two tensor-parallel ranks, as training/checkpointing.py."""
    for rank in range(2):
        place = folder / "iter_0000010" / f"mp_rank_{rank:02d}"
        place.mkdir(parents=True)
        own = OrderedDict((name, t.chunk(2)[rank].clone() if t.ndim > 1 else t) for name, t in weights.items())
        optimiser = {
            "optimizer": {
                "state": {i: {"exp_avg": t * 0.1, "exp_avg_sq": t * t} for i, t in enumerate(own.values())},
                "param_groups": [{"lr": 1e-4, "params": list(range(len(own)))}],
            },
            "fp32_from_fp16_params": [[t.float() for t in own.values()]],
        }
        state = {
            "args": argparse.Namespace(tensor_model_parallel_size=2, num_layers=1), "checkpoint_version": 3.0,
            "iteration": 10, "model": OrderedDict((n, t.bfloat16()) for n, t in own.items()), "optimizer": optimiser,
            "opt_param_scheduler": {"max_lr": 1e-4}, "rng_state": [{"torch_rng_state": torch.get_rng_state()}],
        }  # fmt: skip
        torch.save(state, place / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("10")


def test_tensors_of_megatrons_old_folders_are_found_by_rank(tmp_path: Path) -> None:
    weights = model()
    megatron_legacy(tmp_path / "run", weights)
    name = "model.decoder.layers.0.mlp.linear_fc1.weight"
    with arzstream.open(packed(tmp_path / "run", tmp_path / "run.arz")) as archive:
        parts = [archive.get_tensor(f"iter_0000010/mp_rank_{rank:02d}/model_optim_rng.pt:{name}") for rank in range(2)]
        assert torch.equal(torch.cat(parts), weights["decoder.layers.0.mlp.linear_fc1.weight"].bfloat16())
        assert archive.get_tensor("optimizer.optimizer.state.2.exp_avg").shape == (64, 32)
        assert archive.get_tensor("optimizer.fp32_from_fp16_params.0.2").dtype == torch.float32


def megatron_dist(folder: Path, weights: dict[str, torch.Tensor], ranks: int = 2) -> None:
    """``iter_0000010`` in the format ``torch_dist``: what core/dist_checkpointing writes, by torch's own writer. Layers
    are blocks of one tensor with a leading dimension for them, and so are tensor-parallel shards."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )  # fmt: skip

    place = folder / "iter_0000010"
    place.mkdir(parents=True)
    state: dict[str, object] = {}
    stored = {}
    for rank in range(ranks):
        name = f"__{rank}_0.distcp"
        with (place / name).open("wb") as stream:
            for key, tensor in weights.items():
                whole = torch.stack([tensor, 2 * tensor]) if "layers" in key else tensor
                if tensor.ndim == 1 and rank:
                    continue
                dim = 1 if "layers" in key else 0
                rows = -(-whole.shape[dim] // ranks) if tensor.ndim > 1 else whole.shape[dim]
                for layer in range(2 if "layers" in key else 1):
                    block = whole[layer : layer + 1] if "layers" in key else whole
                    block = block.narrow(dim, rank * rows, min(rows, whole.shape[dim] - rank * rows)).contiguous()
                    offsets = [0] * whole.ndim
                    offsets[dim] = rank * rows
                    if "layers" in key:
                        offsets[0] = layer
                    start = stream.tell()
                    torch.save(block.clone(), stream)
                    fqn = "model." + key.replace("layers.0.", "layers.")
                    known = state.setdefault(fqn, TensorStorageMetadata(TensorProperties(whole.dtype), whole.shape, []))
                    known.chunks.append(ChunkStorageMetadata(torch.Size(offsets), block.shape))  # type: ignore[attr-defined]
                    stored[MetadataIndex(fqn, offsets)] = _StorageInfo(name, start, stream.tell() - start)
    import pickle

    (place / ".metadata").write_bytes(pickle.dumps(Metadata(state, storage_data=stored)))  # type: ignore[arg-type]
    torch.save({"args": argparse.Namespace(num_layers=2), "iteration": 10}, place / "common.pt")
    (place / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    (folder / "latest_checkpointed_iteration.txt").write_text("10")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_tensors_of_megatrons_distributed_folders_are_whole(tmp_path: Path, ranks: int) -> None:
    weights = model()
    megatron_dist(tmp_path / "run", weights, ranks)
    with arzstream.open(packed(tmp_path / "run", tmp_path / "run.arz")) as archive:
        layers = archive.get_tensor("model.decoder.layers.mlp.linear_fc1.weight")
        one = weights["decoder.layers.0.mlp.linear_fc1.weight"]
        assert torch.equal(layers, torch.stack([one, 2 * one]))
        assert torch.equal(archive.get_slice("model.decoder.layers.mlp.linear_fc1.weight")[1, 60:70], 2 * one[60:70])
        assert archive.get_tensor("model.embedding.word_embeddings.weight").shape == (65, 32)


# ------------------------------------------------------------------------------------------------ Lightning


def lightning(weights: dict[str, torch.Tensor]) -> dict[str, object]:
    """What Trainer.save_checkpoint puts into a ``.ckpt``."""
    return {
        "epoch": 1, "global_step": 20, "pytorch-lightning_version": "2.5.5",
        "state_dict": OrderedDict(weights), "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {},
        "optimizer_states": [
            {
                "state": {i: {"step": torch.tensor(20.0), "exp_avg": t * 0.1, "exp_avg_sq": t * t}
                          for i, t in enumerate(weights.values())},
                "param_groups": [{"lr": 1e-3, "params": list(range(len(weights)))}],
            }
        ],
        "lr_schedulers": [],
    }  # fmt: skip


def test_a_lightning_checkpoint_holds_the_weights_of_the_safetensors_file(tmp_path: Path) -> None:
    weights = model()
    torch.save(lightning(weights), tmp_path / "epoch=1-step=20.ckpt")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "run").mkdir()
    shutil.move(tmp_path / "epoch=1-step=20.ckpt", tmp_path / "run")
    a, b = packed(tmp_path / "run", tmp_path / "a.arz"), tmp_path / "b.arz"
    arzstream.pack(tmp_path / "model.safetensors", b)
    with arzstream.open(a) as archive:
        assert archive.get_tensor("optimizer_states.0.state.1.exp_avg").shape == (96, 32)
    for first, second, prefix in ((a, b, ""), (b, a, "state_dict.")):
        found = {tensor.name: tensor.what for tensor in diff(first, second).tensors}
        assert [found[prefix + name] for name in weights] == ["unchanged"] * len(weights)


def test_a_sharded_lightning_folder_is_one_of_dcp_with_more_beside(ranks: Path, tmp_path: Path) -> None:
    source = tmp_path / "epoch=1-step=20.ckpt"
    shutil.copytree(ranks / "dcp" / "step-0", source)
    torch.save({"epoch": 1, "global_step": 20, "optimizer_states": []}, source / "meta.pt")
    with arzstream.open(packed(source, tmp_path / "a.arz")) as archive:
        assert archive.get_tensor("0.weight").shape == (259, 64)


# ------------------------------------------------------------------------------------------------ Orbax


def test_chunks_that_are_compressed_already_are_kept_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "100"
    chunk = zstandard.compress(torch.randn(200_000).numpy().tobytes(), 1)
    (source / "default" / "d").mkdir(parents=True)
    (source / "default" / "d" / "8393a059f285b38f23d04d8d92dbd952").write_bytes(chunk)
    (source / "default" / "manifest.ocdbt").write_bytes(bytes.fromhex("0cdb3a2a7601000000000000000128b5"))
    (source / "default" / "params.w").mkdir()
    (source / "default" / "params.w" / ".zarray").write_text(json.dumps({"compressor": {"id": "zstd", "level": 1}}))
    (source / "default" / "params.w" / "0.0").write_bytes(zstandard.compress(chunk[:1000]))
    (source / "_CHECKPOINT_METADATA").write_text("{}")
    packed(source, tmp_path / "a.arz")
    assert (tmp_path / "a.arz").stat().st_size < len(chunk) + 10_000
