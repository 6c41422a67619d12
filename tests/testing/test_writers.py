"""The writers do to the file system what the libraries they stand for do, and leave the files those would leave."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from arzstream.testing import tensors as T
from arzstream.testing import writers as W

safetensors = pytest.importorskip("safetensors")
torch = pytest.importorskip("torch")


def read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def same(tensors: list[T.Tensor], loaded: dict[str, torch.Tensor]) -> bool:
    return {t.name: (t.shape, t.data) for t in tensors} == {
        name: (tuple(x.shape), x.contiguous().view(torch.uint8).numpy().tobytes() if x.dim() else x.numpy().tobytes())
        for name, x in loaded.items()
    }


def test_bf16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert (T.to_bits(values, "BF16") == expected).all()


def test_the_same_seed_gives_the_same_tensors() -> None:
    assert T.model(seed=3) == T.model(seed=3)
    assert T.model(seed=3) != T.model(seed=4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_header_is_the_one_the_library_writes(family: str, tmp_path: Path) -> None:
    from safetensors.torch import save

    ours = T.safetensors_bytes(T.model(family, layers=12, width=16, vocabulary=32), {"format": "pt"})
    (tmp_path / "x.safetensors").write_bytes(ours)
    assert save(read(tmp_path / "x.safetensors"), {"format": "pt"}) == ours


@pytest.mark.parametrize("style", ["grow", "fill", "renamed"])
def test_single_file_styles_leave_a_valid_file(style: str, tmp_path: Path) -> None:
    tensors, log = T.model("gpt2", layers=2, width=32), W.EventLog()
    W.single(tmp_path / "m.safetensors", tensors, style=style, pace=W.Pace(piece=1000), log=log)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert same(tensors, read(tmp_path / "m.safetensors"))
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == (0o600 if style == "renamed" else 0o644)
    assert abs(log.last() - (tmp_path / "m.safetensors").stat().st_mtime) < 0.5


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_preallocated_file_has_its_final_size_from_the_start(order: str, tmp_path: Path) -> None:
    tensors, log, path = T.model(layers=2), W.EventLog(), tmp_path / "m.safetensors"
    sizes: set[int] = set()
    thread = threading.Thread(
        target=W.fill, args=(path, tensors), kwargs={"pace": W.Pace(pause=0.01), "log": log, "order": order}
    )
    thread.start()
    while thread.is_alive():
        if any(event == "tensor" for _, event, _ in log.events):
            sizes.add(path.stat().st_size)
    thread.join()
    assert sizes == {len(T.safetensors_bytes(tensors))}
    assert path.read_bytes() == T.safetensors_bytes(tensors)


def test_pace_keeps_the_rate(tmp_path: Path) -> None:
    tensors, log = T.model(layers=2, width=64), W.EventLog()
    started = time.monotonic()
    W.single(tmp_path / "m.safetensors", tensors, pace=W.Pace(rate=T.tensor_bytes(tensors) / 0.5, piece=4096), log=log)
    assert 0.35 < time.monotonic() - started < 1.5


def test_torch_save_through_the_slow_file(tmp_path: Path) -> None:
    tensors = T.model(layers=1, width=32) + T.optimizer(T.model(layers=1, width=32))
    W.save_torch(tmp_path / "o.pt", tensors, pace=W.Pace(), log=W.EventLog())
    loaded = torch.load(tmp_path / "o.pt", weights_only=True)
    assert loaded.pop("epoch") == 3 and loaded.pop("betas") == (0.9, 0.999)
    assert same(tensors, loaded)


def test_sharded_folder_as_a_process_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "arzstream.testing.writers", "sharded", str(tmp_path / "s"), "--log", str(log)]
    subprocess.run([*command, "--layers", "3", "--width", "32"], check=True, timeout=60)
    index = json.loads((tmp_path / "s" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    for name in set(index["weight_map"].values()):
        assert set(read(tmp_path / "s" / name)) == {k for k, v in index["weight_map"].items() if v == name}
    events = W.EventLog.load(log)
    names = [name for _, event, name in events.events if event == "last byte"]
    assert names[0].endswith("config.json") and names[-1].endswith("index.json") and events.last("done")


def test_rewrite_and_truncate(tmp_path: Path) -> None:
    path, log = tmp_path / "x", W.EventLog()
    path.write_bytes(bytes(100))
    W.rewrite(path, 10, b"abc", log)
    W.truncate(path, 12, log)
    assert path.read_bytes() == bytes(10) + b"ab"
