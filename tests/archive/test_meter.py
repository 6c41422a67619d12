"""Progress of loading, and stopping it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import arzstream
from arzstream.archive.decoding import Decoder
from arzstream.archive.meter import Bar


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meter") / "x.arz"
    torch.manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(2000, 1000).bfloat16() for n in range(12)}
    arzstream.torch.save_file({**tensors, "norm": torch.ones(7)}, path, profile="fast")
    return path


class Told:
    def __init__(self, stop_at: int | None = None) -> None:
        self.said: list[tuple[int, int, str]] = []
        self.inside, self.stop_at = 0, stop_at

    def __call__(self, done: int, total: int, what: str) -> None:
        self.inside += 1
        assert self.inside == 1  # never from two threads at once
        self.said.append((done, total, what))
        self.inside -= 1
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt


def test_a_stream_counts_up_to_the_bytes_of_its_tensors(archive: Path) -> None:
    told = Told()
    with arzstream.open(archive, progress=told, jobs=3) as opened:
        size = sum(tensor.nbytes for _, tensor in opened.stream())
        assert told.said[-1] == (size, size, "loading")
        done = [said[0] for said in told.said]
        assert done == sorted(done) and len(done) > 12 and {said[1] for said in told.said} == {size}
        told.said.clear()
        opened.get_slice("layers.3.weight")[:10]
        assert told.said[0][0] > size  # read beside the stream
        told.said.clear()
        assert len(list(opened.stream("layers.1.*"))) == 1 and told.said[-1] == (4_000_000, 4_000_000, "loading")
        told.said.clear()
        list(opened.stream(["layers.2.weight", "norm"]))
        assert told.said[-1][:2] == (4_000_028, 4_000_028)
        with pytest.raises(KeyError, match="nothing"):
            list(opened.stream(["nothing", "norm"]))


def test_without_a_callback_nothing_is_counted(archive: Path) -> None:
    with arzstream.open(archive) as opened:
        assert opened.decoder.meter is None and len(list(opened.stream())) == 13


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many chunks were decoded so far; each takes its time."""
    original, count = Decoder.chunk_into, [0]

    def chunk_into(self: Decoder, *arguments: object) -> None:
        count[0] += 1
        time.sleep(0.02)
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "chunk_into", chunk_into)
    return lambda: count[0]


@pytest.mark.parametrize("jobs", [1, 4])
def test_an_exception_of_the_callback_stops_the_reading(archive: Path, chunks: Callable[[], int], jobs: int) -> None:
    with arzstream.open(archive, progress=Told(stop_at=8_000_000), jobs=jobs) as opened:
        with pytest.raises(KeyboardInterrupt):
            list(opened.stream())
        before = chunks()
        assert before < 24
        time.sleep(0.1)
        assert chunks() == before
        with pytest.raises(KeyboardInterrupt):
            opened.get_tensor("layers.9.weight")
        assert chunks() <= before + 1


@pytest.mark.parametrize("read", ["stream", "tensor", "file"])
def test_closing_in_another_thread_stops_the_reading(archive: Path, chunks: Callable[[], int], read: str) -> None:
    opened = arzstream.open(archive, jobs=2)
    reached = threading.Event()
    found: list[BaseException] = []

    def work() -> None:
        try:
            if read == "stream":
                for _ in opened.stream():
                    reached.set()
            elif read == "tensor":
                for name in opened.keys() * 3:
                    opened.get_tensor(name)
                    reached.set()
            else:
                reached.set()
                opened.read_file("model.safetensors")
        except BaseException as error:
            found.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert reached.wait(20)
    started = time.monotonic()
    opened.close()
    worker.join(20)
    assert time.monotonic() - started < 2 and not worker.is_alive()
    assert isinstance(found[0], arzstream.StorageError) and "was closed" in str(found[0])
    before = chunks()
    with pytest.raises(arzstream.StorageError, match="was closed"):
        opened.get_tensor("norm")
    assert chunks() <= before + 1


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar()
    bar(1, 2, "loading")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar(500_000, 1_000_000, "loading")
    bar(1_000_000, 1_000_000, "loading")
    said = capsys.readouterr().err
    assert said.startswith("\rloading [") and "1 of 1 MB" in said and said.endswith("\n") and "#" * 30 in said
