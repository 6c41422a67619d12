"""Real transformers models, out of archives and out of the folders that were packed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

import arzstream

Packed = Callable[..., tuple[Path, Path]]


def same(found: Any, wanted: Any) -> None:
    """Equal parameters and buffers, bit for bit."""
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llama", {}),
        ("llama", {"shards": True}),
        ("llama", {"form": "bin"}),
        ("gpt2", {}),
        ("gpt2", {"form": "bin"}),
        ("bert", {"shards": True}),
        ("mixtral", {}),
    ],
)
def test_a_model_is_what_transformers_loads_from_the_folder(
    packed_model: Packed, kind: str, how: dict[str, Any]
) -> None:
    folder, archive = packed_model(kind, **how)
    ours = arzstream.transformers.from_pretrained(archive)
    theirs = getattr(transformers, type(ours).__name__).from_pretrained(folder)
    same(ours, theirs)
    assert not ours.training and ours.config.name_or_path == str(archive)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids)[0], theirs(ids)[0])


def test_a_quantised_model_is_what_transformers_makes_of_the_folder(fp8_model: tuple[Path, Path]) -> None:
    folder, archive = fp8_model
    ours = arzstream.transformers.from_pretrained(archive)
    same(ours, transformers.LlamaForCausalLM.from_pretrained(folder, dtype="auto"))
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours.state_dict()[name].float(), stored[name].float())  # its scales were used


def test_weights_of_something_else_do_not_make_a_random_model(packed_model: Packed, tmp_path: Path) -> None:
    folder, _ = packed_model("llama")
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    adapter = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(8, 128)}
    safetensors.torch.save_file(adapter, tmp_path / "m" / "adapter_model.safetensors", {"format": "pt"})
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz", profile="fast")
    with pytest.raises(arzstream.UnsupportedError, match="none of the weights of a LlamaForCausalLM"):
        arzstream.transformers.from_pretrained(tmp_path / "m.arz")


def test_two_files_with_weights_of_one_name_are_refused_if_no_index_lists_them(
    packed_model: Packed, tmp_path: Path
) -> None:
    folder, _ = packed_model("llama")
    shutil.copytree(folder, tmp_path / "m")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "step-1.safetensors")
    arzstream.pack([tmp_path / "m"], tmp_path / "one.arz", profile="fast")
    arzstream.transformers.from_pretrained(tmp_path / "one.arz")
    later = {name: tensor + 1 for name, tensor in tensors.items()}
    safetensors.torch.save_file(later, tmp_path / "m" / "step-2.safetensors", {"format": "pt"})
    arzstream.pack([tmp_path / "m"], tmp_path / "two.arz", profile="fast")
    with pytest.raises(arzstream.UnsupportedError, match=r"step-1.safetensors and step-2.safetensors both hold "):
        arzstream.transformers.from_pretrained(tmp_path / "two.arz")


def test_generation_is_that_of_the_original_with_its_generation_config(packed_model: Packed) -> None:
    folder, archive = packed_model("llama")
    copied = archive.parent / "generation"
    if not copied.exists():
        shutil.copytree(folder, copied)
        (copied / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7, "eos_token_id": 511}))
        arzstream.pack([copied], archive.parent / "generation.arz")
    ours = arzstream.transformers.from_pretrained(archive.parent / "generation.arz")
    theirs = transformers.LlamaForCausalLM.from_pretrained(copied)
    assert ours.generation_config.max_new_tokens == 7 and ours.generation_config.eos_token_id == 511
    ids = torch.arange(3, 9)[None]
    assert torch.equal(ours.generate(ids, do_sample=False), theirs.generate(ids, do_sample=False))


def test_dtype_and_device_map_are_transformers_own(packed_model: Packed, tmp_path: Path) -> None:
    folder, archive = packed_model("llama", shards=True)
    for dtype in (torch.float32, "float16", "auto"):
        same(
            arzstream.transformers.from_pretrained(archive, dtype=dtype),
            transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype),
        )
    layers = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    layers |= {f"model.layers.{n}": "disk" if n == 1 else "cpu" for n in range(3)}
    ours = arzstream.transformers.from_pretrained(archive, device_map=layers, offload_folder=tmp_path / "offload")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    same(arzstream.transformers.from_pretrained(archive, device_map="auto"), theirs)


def test_a_missing_dtype_in_the_configuration_is_that_of_the_weights(packed_model: Packed, tmp_path: Path) -> None:
    folder, _ = packed_model("gpt2")
    shutil.copytree(folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz")
    assert arzstream.transformers.from_pretrained(tmp_path / "m.arz").dtype == torch.bfloat16


def test_another_class_is_taken_if_it_is_asked_for(packed_model: Packed) -> None:
    folder, archive = packed_model("llama")
    base = arzstream.transformers.from_pretrained(archive, model_class=transformers.LlamaModel)
    same(base, transformers.LlamaModel.from_pretrained(folder))
    head = arzstream.transformers.from_pretrained(archive, model_class=transformers.AutoModelForCausalLM)
    assert type(head) is transformers.LlamaForCausalLM
    loaded, info = arzstream.transformers.from_pretrained(
        archive, model_class=transformers.AutoModelForSequenceClassification, output_loading_info=True
    )
    assert type(loaded) is transformers.LlamaForSequenceClassification and "score.weight" in info["missing_keys"]
    with pytest.raises(arzstream.UnsupportedError, match="AutoModelForImageClassification"):
        arzstream.transformers.from_pretrained(archive, model_class=transformers.AutoModelForImageClassification)


def test_tokenizer_and_configuration_come_out_of_the_archive(packed_model: Packed) -> None:
    folder, archive = packed_model("llama")
    ours, theirs = arzstream.transformers.tokenizer_from(archive), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours("a b z")["input_ids"] == theirs("a b z")["input_ids"] and type(ours) is type(theirs)
    assert ours.name_or_path == str(archive)
    config = arzstream.transformers.config_from(archive)
    wanted = transformers.AutoConfig.from_pretrained(folder).to_dict()
    assert config.to_dict() == {**wanted, "_name_or_path": str(archive)}


def test_one_open_archive_serves_all_of_them_and_stays_open(packed_model: Packed) -> None:
    folder, path = packed_model("gpt2")
    with arzstream.open(path) as archive:
        arzstream.transformers.tokenizer_from(archive)
        same(arzstream.transformers.from_pretrained(archive), transformers.GPT2LMHeadModel.from_pretrained(folder))
        assert archive.get_tensor("transformer.wpe.weight").shape == (128, 96)


def test_a_checkpoint_folder_inside_an_archive_is_found_or_named(packed_model: Packed, tmp_path: Path) -> None:
    llama, _ = packed_model("llama")
    gpt2, _ = packed_model("gpt2")
    shutil.copytree(llama, tmp_path / "one" / "checkpoint-10")
    torch.save({"x": torch.ones(3)}, tmp_path / "one" / "checkpoint-10" / "optimizer.pt")
    arzstream.pack([tmp_path / "one"], tmp_path / "one.arz")
    same(
        arzstream.transformers.from_pretrained(tmp_path / "one.arz"),
        transformers.LlamaForCausalLM.from_pretrained(llama),
    )
    shutil.copytree(gpt2, tmp_path / "one" / "other")
    arzstream.pack([tmp_path / "one"], tmp_path / "two.arz")
    with pytest.raises(arzstream.UnsupportedError, match="subfolder"):
        arzstream.transformers.from_pretrained(tmp_path / "two.arz")
    same(
        arzstream.transformers.from_pretrained(tmp_path / "two.arz", subfolder="other"),
        transformers.GPT2LMHeadModel.from_pretrained(gpt2),
    )


def test_a_variant_of_the_weights_is_taken_by_its_name(packed_model: Packed, tmp_path: Path) -> None:
    folder, _ = packed_model("bert")
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "model.fp16.safetensors")
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz")
    same(
        arzstream.transformers.from_pretrained(tmp_path / "m.arz", variant="fp16"),
        transformers.BertModel.from_pretrained(folder),
    )
    with pytest.raises(arzstream.UnsupportedError, match=r"model\.fp32\.safetensors"):
        arzstream.transformers.from_pretrained(tmp_path / "m.arz", variant="fp32")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_part_is_one_line_that_names_it(packed_model: Packed, tmp_path: Path, missing: str) -> None:
    folder, _ = packed_model("bert")
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / missing).unlink()
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz")
    with pytest.raises(arzstream.UnsupportedError, match=missing) as caught:
        arzstream.transformers.from_pretrained(tmp_path / "m.arz")
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(packed_model: Packed, tmp_path: Path) -> None:
    folder, _ = packed_model("llama", shards=True)
    shutil.copytree(folder, tmp_path / "m")
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    shard.unlink()
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz")
    with pytest.raises(arzstream.UnsupportedError, match=shard.name):
        arzstream.transformers.from_pretrained(tmp_path / "m.arz")


def test_nothing_of_transformers_or_safetensors_is_changed(packed_model: Packed) -> None:
    import safetensors

    _, archive = packed_model("llama")
    before = {module: dict(vars(module)) for module in (transformers.modeling_utils, safetensors, safetensors.torch)}
    arzstream.transformers.from_pretrained(archive)
    for module, names in before.items():
        assert {name: value for name, value in vars(module).items() if names.get(name) is not value} == {}


def test_every_tensor_is_decoded_once(packed_model: Packed, decoded: list[str]) -> None:
    _, archive = packed_model("llama")
    arzstream.transformers.from_pretrained(archive, jobs=2)
    assert len(decoded) == len(set(decoded))


def test_progress_ends_at_the_bytes_of_the_model_and_an_exception_stops_loading(packed_model: Packed) -> None:
    _folder, archive = packed_model("llama", shards=True)
    told: list[tuple[int, int, str]] = []
    model = arzstream.transformers.from_pretrained(archive, progress=lambda *said: told.append(said))
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert told[-1] == (size, size, "loading") and [done for done, _, _ in told] == sorted(done for done, _, _ in told)

    class Enough(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done > total // 3:
            raise Enough

    with pytest.raises(Enough):
        arzstream.transformers.from_pretrained(archive, progress=stop)


RANK = """
import json, sys, torch, transformers, arzstream
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed import DistributedConfig
from arzstream.store.ranges import LocalReader

rank, folder, archive = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
into, read, total = LocalReader.read_into, LocalReader.read_at, [0]
def read_into(self, offset, buffer):
    total[0] += buffer.nbytes
    into(self, offset, buffer)
def read_at(self, offset, length):
    total[0] += length
    return read(self, offset, length)
LocalReader.read_into, LocalReader.read_at = read_into, read_at
config = lambda: DistributedConfig(tp_size=4)
theirs = transformers.LlamaForCausalLM.from_pretrained(folder, distributed_config=config())
ours = arzstream.transformers.from_pretrained(archive, distributed_config=config())
local = lambda tensor: tensor.to_local() if hasattr(tensor, "to_local") else tensor
wanted, found = ({k: local(v) for k, v in m.state_dict().items()} for m in (theirs, ours))
assert wanted.keys() == found.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())
whole = sum(t.numel() for t in transformers.LlamaForCausalLM.from_pretrained(folder).state_dict().values())
print(json.dumps({"read": total[0], "share": sum(t.numel() for t in found.values()) / whole}))
"""


@pytest.mark.parametrize("rank", [0, 3])
def test_a_tensor_parallel_rank_of_four_reads_less_than_a_third(tmp_path: Path, rank: int) -> None:
    """With transformers' own tensor parallelism, as rank ``rank`` of a group whose other ranks are not there."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "m")
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz", profile="fast", tensor_parallel=4)
    done = subprocess.run(
        [sys.executable, "-c", RANK, str(rank), tmp_path / "m", tmp_path / "m.arz"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["read"] / (tmp_path / "m.arz").stat().st_size < said["share"] + 0.05
