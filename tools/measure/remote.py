"""Reading an archive behind a URL: requests, bytes, and seconds through links of given speeds.

    .venv/bin/python -m tools.measure.remote                     # a 1 GB archive: ten rows of one tensor
    .venv/bin/python -m tools.measure.remote --mb 200 --rates 50 200

The server is nginx on this machine, the link a proxy in a process of its own that lets so many bytes a second through.
Each way of loading ends with all tensors in memory, from the URL: the archive, streamed; the safetensors file, streamed
range by range by the same reader; and the file downloaded to a disk first and then loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import arzstream
from arzstream.store.remote import RemoteReader
from arzstream.testing import servers, tensors

ROWS, COLUMNS = 4096, 2048
DOWNLOAD_BYTES = 8 << 20
PIECE_BYTES = 2 << 20
PROXY = """
import sys, threading
from arzstream.testing.proxy import FaultProxy
proxy = FaultProxy(int(sys.argv[1]))
proxy.rate = float(sys.argv[2]) * 1e6 or None
print(proxy.port, flush=True)
sys.stdin.read()
"""


def weights(folder: Path, mbytes: int) -> Path:
    """A safetensors file of bf16 matrices of 16 MiB, as many as make up so many MB."""
    rng = np.random.default_rng(0)
    count = max(1, round(mbytes * 1e6 / (2 * ROWS * COLUMNS)))
    shape = (ROWS, COLUMNS)
    found = [
        tensors.Tensor(f"model.layers.{n}.weight", "BF16", shape, tensors.gaussian(shape, "BF16", rng))
        for n in range(count)
    ]
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(found))
    return folder / "model.safetensors"


@contextlib.contextmanager
def link(port: int, rate: float) -> Iterator[int]:
    """The port of a proxy that lets ``rate`` MB/s through; 0 for as much as comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROXY, str(port), str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.communicate()


def ten_rows(url: str) -> dict[str, Any]:
    """Ten rows from the middle of one tensor, across the border of two chunks."""
    with arzstream.open(url) as archive:
        name = archive.keys()[len(archive.keys()) // 2]
        part = archive.get_slice(name)
        part[ROWS // 2 - 5 : ROWS // 2 + 5]
        reader = archive.decoder.reader
        assert isinstance(reader, RemoteReader)
        return {"requests": reader.requests, "bytes": reader.bytes_moved, "archive": reader.size}


def streamed(url: str) -> None:
    with arzstream.open(url) as archive:
        held = [array for _, array in archive.stream(framework="np")]
    assert held


def raw_streamed(url: str) -> None:
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


def downloaded(url: str, folder: Path) -> None:
    from safetensors.torch import load_file

    place = folder / "download.safetensors"
    with RemoteReader(url) as reader, open(place, "wb") as file:
        announced = reader.announce()
        announced.add([(0, reader.size)])
        for start in range(0, reader.size, DOWNLOAD_BYTES):
            file.write(reader.read_at(start, min(DOWNLOAD_BYTES, reader.size - start)))
        announced.release()
    held = load_file(place)
    assert held
    place.unlink()


def processor_time(url: str, folder: str, rounds: int) -> None:
    """What a gigabyte costs of this process's processor time, and of the clock, beside obstore's client."""
    import obstore
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(folder, client_options={"allow_http": True})
    with RemoteReader(url) as reader:
        size = reader.size
    out = memoryview(bytearray(size))

    def ours() -> None:
        with RemoteReader(url) as reader:
            announced = reader.announce()
            announced.add([(0, size)])
            for start in range(0, size, PIECE_BYTES):
                reader.read_into(start, out[start : start + PIECE_BYTES])
            announced.release()

    def fetch(start: int) -> None:
        end = min(size, start + DOWNLOAD_BYTES)
        out[start:end] = memoryview(obstore.get_range(store, "model.safetensors", start=start, end=end))

    def theirs() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fetch, range(0, size, DOWNLOAD_BYTES)))

    found: dict[str, list[tuple[float, float]]] = {"the reader": [], "obstore": []}
    for _ in range(rounds):
        for name, function in (("the reader", ours), ("obstore", theirs)):
            began = time.process_time(), time.monotonic()
            function()
            taken = (time.process_time() - began[0]) / size * 1e9, (time.monotonic() - began[1]) / size * 1e9
            found[name].append(taken)
    for name, times in found.items():
        processor, clock = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name}: {processor:.2f} s of processor time for a GB, {clock:.2f} s by the clock")


def seconds(function: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.monotonic()
        function()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1530, help="of weights  [1530]")
    parser.add_argument("--rates", type=float, nargs="*", default=[], metavar="MB/S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--obstore", action="store_true", help="compare the client with obstore's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        source = weights(work, options.mb)
        (work / "server").mkdir()
        with servers.nginx(work / "server") as server:
            assert server.folder is not None
            arzstream.pack(source, server.folder / "model.arz", profile=options.profile)
            (server.folder / "model.arz").chmod(0o644)
            shutil.copyfile(source, server.folder / "model.safetensors")
            rows = ten_rows(f"{server.url}/model.arz")
            print(
                f"ten rows of one tensor of an archive of {rows['archive'] / 1e6:,.0f} MB: {rows['requests']} requests,"
                f" {rows['bytes'] / (1 << 20):.2f} MiB"
            )
            if options.obstore:
                processor_time(f"{server.url}/model.safetensors", server.url, options.rounds)
            for rate in options.rates:
                with link(server.port, rate) as port:
                    archive, raw = (f"http://127.0.0.1:{port}/model.{kind}" for kind in ("arz", "safetensors"))
                    ours = seconds(lambda url=archive: streamed(url), options.rounds)
                    same = seconds(lambda url=raw: raw_streamed(url), options.rounds)
                    down = seconds(lambda url=raw: downloaded(url, work), options.rounds)
                    print(
                        f"{rate:.0f} MB/s: archive {ours:.2f} s; raw, streamed {same:.2f} s ({same / ours:.2f} ×); "
                        f"raw, downloaded {down:.2f} s ({down / ours:.2f} ×)"
                    )


if __name__ == "__main__":
    main()
