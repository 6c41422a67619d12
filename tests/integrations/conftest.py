"""Small models of several kinds, saved as their users do, and archives of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arzstream
from arzstream.archive.reader import Archive


@pytest.fixture(scope="session")
def model_of() -> Callable[..., Any]:
    """``model_of(kind, dtype)``: a tiny random transformers model, always the same."""
    import torch
    import transformers

    def make(kind: str, dtype: str = "bfloat16") -> Any:
        torch.manual_seed(7)
        if kind == "llama":
            config: Any = transformers.LlamaConfig(
                vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=8,
                num_key_value_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
            )  # fmt: skip
            model: Any = transformers.LlamaForCausalLM(config)
        elif kind == "gpt2":
            config = transformers.GPT2Config(vocab_size=512, n_embd=96, n_layer=2, n_head=4, n_positions=128)
            model = transformers.GPT2LMHeadModel(config)
        elif kind == "bert":
            config = transformers.BertConfig(
                vocab_size=512, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4
            )
            model = transformers.BertModel(config)
        elif kind == "t5":
            config = transformers.T5Config(
                vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
            )
            model = transformers.T5ForConditionalGeneration(config)
        else:
            config = transformers.MixtralConfig(
                vocab_size=512, hidden_size=192, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, num_local_experts=4, max_position_embeddings=128,
            )  # fmt: skip
            model = transformers.MixtralForCausalLM(config)
        return model.to(getattr(torch, dtype)).eval()

    return make


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[..., Any]) -> Callable[..., Path]:
    """``saved_model(kind, dtype, shards, form)``: a folder with it and a tokenizer, as ``save_pretrained`` writes."""
    made: dict[tuple[Any, ...], Path] = {}

    def save(kind: str, dtype: str = "bfloat16", *, shards: bool = False, form: str = "safetensors") -> Path:
        key = (kind, dtype, shards, form)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-{dtype}-{shards}-{form}")
            model = model_of(kind, dtype)
            model.save_pretrained(folder, max_shard_size="200KB" if shards else "5GB")
            if form == "bin":
                _as_bin(folder, model)
            _tokenizer(folder)
            made[key] = folder
        return made[key]

    return save


def _as_bin(folder: Path, model: Any) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def _tokenizer(folder: Path) -> None:
    import tokenizers
    import transformers

    words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def packed_model(
    tmp_path_factory: pytest.TempPathFactory, saved_model: Callable[..., Path]
) -> Callable[..., tuple[Path, Path]]:
    """As ``saved_model``, and the archive of that folder."""
    made: dict[Path, Path] = {}

    def pack(kind: str, dtype: str = "bfloat16", **how: Any) -> tuple[Path, Path]:
        folder = saved_model(kind, dtype, **how)
        if folder not in made:
            made[folder] = tmp_path_factory.mktemp("archives") / f"{folder.name}.arz"
            arzstream.pack([folder], made[folder], profile="fast")
        return folder, made[folder]

    return pack


@pytest.fixture(scope="session")
def fp8_model(tmp_path_factory: pytest.TempPathFactory, saved_model: Callable[..., Path]) -> tuple[Path, Path]:
    """The llama with its projections in blocks of F8 and a scale for each, as DeepSeek and Qwen publish theirs, and the
    archive of that folder."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("fp8") / "llama"
    shutil.copytree(saved_model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors[name].shape
        scales = torch.rand(-(-rows // 128), -(-columns // 128)) + 0.5
        tensors[name] = (tensors[name].float() * 100).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales / 100
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    arzstream.pack([folder], folder.with_suffix(".arz"), profile="fast")
    return folder, folder.with_suffix(".arz")


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes that were read from archives so far, whatever they were read for."""
    from arzstream.store.ranges import LocalReader

    read, into = LocalReader.read_at, LocalReader.read_into
    total = [0]

    def read_at(self: Any, offset: int, length: int) -> bytes:
        total[0] += length
        return read(self, offset, length)

    def read_into(self: Any, offset: int, buffer: memoryview) -> None:
        total[0] += buffer.nbytes
        into(self, offset, buffer)

    monkeypatch.setattr(LocalReader, "read_at", read_at)
    monkeypatch.setattr(LocalReader, "read_into", read_into)
    return lambda: total[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the units that chunks were decoded of, one for each chunk, in order."""
    from arzstream.archive.decoding import Decoder, describe

    original, seen = Decoder.chunk_into, []

    def chunk_into(self: Any, entry: Any, chunk: int, out: memoryview) -> None:
        seen.append(describe(entry.unit))
        original(self, entry, chunk, out)

    monkeypatch.setattr(Decoder, "chunk_into", chunk_into)
    return seen


@pytest.fixture
def closed_archives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the archives that were closed."""
    seen: list[str] = []
    original = Archive.close

    def close(self: Archive) -> None:
        seen.append(os.fspath(self.name))
        original(self)

    monkeypatch.setattr(Archive, "close", close)
    return seen
