"""Models out of an archive in a bucket: transformers, accelerate, what servers iterate over, and ``arz://``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
import transformers

import arzstream
from arzstream.integrations.accelerate import offloaded_from_pretrained
from arzstream.integrations.serving import ServingOptions, weights_of
from arzstream.testing.servers import Server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(path, max_shard_size="2MB")
    return path


@pytest.fixture(scope="module")
def url(folder: Path, moto: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("archive") / "m.arz"
    arzstream.pack([folder], path, profile="fast")
    fsspec.filesystem("s3", **moto.storage_options).put_file(str(path), "archives/models/m.arz")
    return f"{moto.url}/models/m.arz"


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return found


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_transformers_loads_the_model_from_the_bucket(folder: Path, url: str, moto: Server) -> None:
    model = arzstream.transformers.from_pretrained(url, storage_options=moto.storage_options)
    equal(model.state_dict(), transformers.LlamaForCausalLM.from_pretrained(folder).state_dict())
    assert arzstream.transformers.config_from(url, storage_options=moto.storage_options).num_hidden_layers == 4


def test_accelerate_runs_the_model_from_the_bucket(folder: Path, url: str, moto: Server) -> None:
    model = offloaded_from_pretrained(url, storage_options=moto.storage_options, cache_bytes=1 << 20)
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, transformers.LlamaForCausalLM.from_pretrained(folder)(ids).logits)
    model.arz_archive.close()


def test_a_server_iterates_over_the_weights_in_the_bucket(folder: Path, url: str, moto: Server) -> None:
    equal(dict(weights_of(ServingOptions(url, moto.storage_options))), state(folder))


def test_arz_urls_read_the_original_files_in_the_bucket(folder: Path, url: str, moto: Server) -> None:
    for path in sorted(folder.iterdir()):
        options: dict[str, Any] = {"s3": moto.storage_options}
        with fsspec.open(f"arz://{path.name}::{url}", **options) as file:
            assert file.read() == path.read_bytes()


def test_loading_from_the_bucket_can_be_stopped(url: str, moto: Server) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        raise Enough

    with pytest.raises(Enough):
        arzstream.transformers.from_pretrained(url, storage_options=moto.storage_options, progress=stop)
