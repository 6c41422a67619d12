"""Reading an archive behind a URL: requests, bytes, and seconds through links of given speeds.

    .venv/bin/python -m tools.measure.remote                     # a 1 GB archive: ten rows of one tensor
    .venv/bin/python -m tools.measure.remote --rates 50 200 1000

The server is nginx on this machine, the link between is slowed down (``links.py``).
Each way of loading ends with all tensors in memory, from the URL: the archive, streamed; the safetensors file, streamed
range by range by the same reader; and the file downloaded to a disk first and then loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import arzstream
from arzstream.store.remote import WINDOW_BYTES, RemoteReader
from arzstream.testing import servers, tensors
from tools.measure.checks import Checks
from tools.measure.links import in_own_network, link, moved

WIDTH, VOCABULARY = 1024, 32768
EMBEDDING, BLOCK = "model.embed_tokens.weight", "model.layers.{}."
MATRICES = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    **{f"mlp.{name}_proj": (4 * WIDTH, WIDTH) for name in ("gate", "up")},
    "mlp.down_proj": (WIDTH, 4 * WIDTH),
}
DOWNLOAD_BYTES = 8 << 20
PIECE_BYTES = 2 << 20
SLOW = 200.0
"""MB/s up to which the archive must be faster, and not only as fast."""
SLACK = 64 << 20
"""Bytes that loading may take beside the model and what is fetched ahead."""


def weights(folder: Path, layers: int) -> Path:
    """A safetensors file of a transformer in bf16: an embedding of 64 MiB, and 32 MiB for each layer."""
    rng = np.random.default_rng(0)
    shapes = {EMBEDDING: (VOCABULARY, WIDTH)}
    for layer in range(layers):
        shapes |= {f"{BLOCK.format(layer)}{name}.weight": shape for name, shape in MATRICES.items()}
    found = [tensors.Tensor(name, "BF16", s, tensors.gaussian(s, "BF16", rng)) for name, s in shapes.items()]
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(found))
    return folder / "model.safetensors"


def ten_rows(url: str) -> dict[str, Any]:
    """Ten rows from the middle of one tensor, across the border of two chunks."""
    with arzstream.open(url) as archive:
        name = next(name for name in archive.keys() if name.startswith(BLOCK.format(10)))  # noqa: SIM118
        archive.get_slice(name)[WIDTH - 5 : WIDTH + 5]
        reader = archive.decoder.reader
        assert isinstance(reader, RemoteReader)
        return {"requests": reader.requests, "bytes": reader.bytes_moved, "archive": reader.size}


def streamed(url: str, first: Callable[[], None]) -> list[Any]:
    """``first`` is called when the embedding and the first block are there."""
    held = []
    waited = {EMBEDDING, *(f"{BLOCK.format(0)}{name}.weight" for name in MATRICES)}
    with arzstream.open(url) as archive:
        for name, array in archive.stream(framework="np"):
            held.append(array)
            waited.discard(name)
            if not waited:
                first()
                waited = {""}
    return held


def raw_streamed(url: str) -> list[Any]:
    with RemoteReader(url) as reader:
        head = int.from_bytes(reader.read_at(0, 8), "little")
        header = json.loads(reader.read_at(8, head))
        places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        announced = reader.announce()
        announced.add([(8 + head + start, end - start) for start, end in places])
        held = []
        for start, end in places:
            out = np.empty(end - start, np.uint8)
            reader.read_into(8 + head + start, out.data)
            held.append(out)
        announced.release()
    return held


def downloaded(url: str, folder: Path) -> Any:
    from safetensors.torch import load_file

    place = folder / "download.safetensors"
    with RemoteReader(url) as reader, open(place, "wb") as file:
        announced = reader.announce()
        announced.add([(0, reader.size)])
        for start in range(0, reader.size, DOWNLOAD_BYTES):
            file.write(reader.read_at(start, min(DOWNLOAD_BYTES, reader.size - start)))
        announced.release()
    held = load_file(place)
    place.unlink()
    return held


def processor_time(url: str, folder: str, rounds: int) -> None:
    """What a gigabyte costs of this process's processor time, and of the clock: received by us, by aiohttp, which is
    used where options are given that only it knows, and by obstore where it is installed."""
    with RemoteReader(url) as reader:
        size = reader.size
    out = memoryview(bytearray(size))

    def ours(**options: Any) -> None:
        with RemoteReader(url, options) as reader:
            announced = reader.announce()
            announced.add([(0, size)])
            for start in range(0, size, PIECE_BYTES):
                reader.read_into(start, out[start : start + PIECE_BYTES])
            announced.release()

    ways: dict[str, Callable[[], None]] = {
        "the reader": ours,
        "the reader, with aiohttp": lambda: ours(client_kwargs={"headers": {"X-Any": "1"}}),
    }
    with contextlib.suppress(ImportError):
        import obstore
        from obstore.store import HTTPStore

        store = HTTPStore.from_url(folder, client_options={"allow_http": True})

        def fetch(start: int) -> None:
            end = min(size, start + DOWNLOAD_BYTES)
            out[start:end] = memoryview(obstore.get_range(store, "model.safetensors", start=start, end=end))

        def theirs() -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(fetch, range(0, size, DOWNLOAD_BYTES)))

        ways["obstore"] = theirs
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, function in ways.items():
            began = time.process_time(), time.monotonic()
            function()
            taken = (time.process_time() - began[0]) / size * 1e9, (time.monotonic() - began[1]) / size * 1e9
            found[name].append(taken)
    for name, times in found.items():
        processor, clock = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name}: {processor:.2f} s of processor time for a GB, {clock:.2f} s by the clock")


class Loaded(NamedTuple):
    """What one way of loading took: seconds; bytes of memory beyond what the process had; bytes that had arrived when
    the first block was there, 0 if it is not known."""

    seconds: float
    memory: int
    first: int


def load_in_process(way: str, url: str, folder: Path) -> Loaded:
    """In a process of its own, which has imported everything."""
    fresh = multiprocessing.get_context("spawn")
    here, there = fresh.Pipe()
    process = fresh.Process(target=_load, args=(way, url, folder, there))
    process.start()
    there.close()
    try:
        found: Loaded = here.recv()
    finally:
        process.join()
    return found


def _load(way: str, url: str, folder: Path, told: Any) -> None:
    import safetensors.torch  # noqa: F401

    first = 0

    def mark() -> None:
        nonlocal first
        first = moved() - before

    with RemoteReader(url) as reader:
        reader.read_at(0, 8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident, before, began = _memory("VmRSS"), moved(), time.monotonic()
    ways: dict[str, Callable[[], Any]] = {
        "archive": lambda: streamed(url, mark),
        "raw": lambda: raw_streamed(url),
        "download": lambda: downloaded(url, folder),
    }
    held = ways[way]()
    taken = time.monotonic() - began
    told.send(Loaded(taken, _memory("VmHWM") - resident, first))
    del held


def _memory(kind: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return 1024 * int(line.split()[1])
    raise KeyError(kind)


def medians(way: str, url: str, folder: Path, rounds: int) -> Loaded:
    found = [load_in_process(way, url, folder) for _ in range(rounds)]
    seconds, memory, first = (statistics.median(column) for column in zip(*found, strict=True))
    return Loaded(seconds, int(memory), int(first))


def compare(
    server: servers.Server, model: int, archive: int, rate: float, rounds: int, own: bool, check: Checks
) -> None:
    """Load a model of ``model`` bytes, and its archive of ``archive``, in all ways through a link of ``rate`` MB/s."""
    assert server.folder is not None
    with link(server.port, rate, own) as port:
        place = f"http://127.0.0.1:{port}/model."
        ours = medians("archive", place + "arz", server.folder, rounds)
        same = medians("raw", place + "safetensors", server.folder, rounds)
        down = medians("download", place + "safetensors", server.folder, rounds)
    streaming, downloading = same.seconds / ours.seconds, down.seconds / ours.seconds
    print(
        f"{rate:.0f} MB/s: archive {ours.seconds:.2f} s; raw, streamed {same.seconds:.2f} s ({streaming:.2f} ×); "
        f"raw, downloaded {down.seconds:.2f} s ({downloading:.2f} ×)"
    )
    if rate > SLOW:
        check(min(streaming, downloading) >= 1, "no slower than the raw file in either way")
    else:
        check(downloading >= 1.45, f"{downloading:.2f} times as fast as downloading, at least 1.45")
        check(streaming >= 1.35, f"{streaming:.2f} times as fast as streaming the raw file, at least 1.35")
    most = model + WINDOW_BYTES + SLACK
    check(ours.memory <= most, f"{ours.memory / 2**20:.0f} MiB of memory, {most / 2**20:.0f} allowed")
    if own:
        elements = VOCABULARY * WIDTH + sum(rows * columns for rows, columns in MATRICES.values())
        share, arrived = 2 * elements / model, ours.first / archive
        check(
            arrived <= share + 0.05,
            f"{arrived:.1%} of the archive had arrived when the first block was there, {share:.1%} and 5 % allowed",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=44, help="of 32 MiB  [44]")
    parser.add_argument("--rates", type=float, nargs="*", default=[], metavar="MB/S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--clients", action="store_true", help="what receiving costs, with other clients, too")
    options = parser.parse_args()
    own, check = in_own_network(), Checks()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        source = weights(work, options.layers)
        (work / "server").mkdir()
        with servers.nginx(work / "server") as server:
            assert server.folder is not None
            packed = arzstream.pack(source, server.folder / "model.arz", profile=options.profile)
            (server.folder / "model.arz").chmod(0o644)
            shutil.move(source, server.folder / "model.safetensors")
            rows = ten_rows(f"{server.url}/model.arz")
            check(
                rows["requests"] <= 3 and rows["bytes"] <= 4 << 20,
                f"ten rows of one tensor of an archive of {rows['archive'] / 1e6:,.0f} MB: {rows['requests']} requests "
                f"of 3; {rows['bytes'] / (1 << 20):.2f} of 4 MiB",
            )
            if options.clients:
                processor_time(f"{server.url}/model.safetensors", server.url, options.rounds)
            for rate in options.rates:
                compare(server, packed.bytes_in, packed.bytes_out, rate, options.rounds, own, check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
