"""Tensors and slices against what torch itself says, from many threads, and what reading them costs."""

from __future__ import annotations

import os
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import arzstream
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.reader import Archive
from arzstream.codec.dtypes import DTYPES
from arzstream.container.records import FileRecord, Member, Piece, Reference, Unit
from arzstream.container.writer import FrameWriter
from arzstream.kernels.digests import blake3, sha256_hasher, xxh3_64
from arzstream.testing.tensors import Tensor, gaussian, model, safetensors_bytes

New = Callable[..., Any]
RNG = np.random.default_rng(11)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one element may have any stride
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bits(found) == bits(wanted)


def truth(data: bytes) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(data)


# -- every bit pattern -----------------------------------------------------------------------------------------


def patterns() -> list[Tensor]:
    every16, every8 = np.arange(65536, dtype="<u2").tobytes(), bytes(range(256))
    odd32 = np.array([0, 1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFFFFFFF], "<u4")
    odd64 = np.array([0, 1 << 63, 1, 0x7FF0000000000000, 0x7FF0000000000001, 0x7FF8000000000000, (1 << 64) - 1], "<u8")
    tensors = []
    for name, kind in DTYPES.items():
        data = {2: every16, 1: every8, 4: odd32.tobytes(), 8: odd64.tobytes(), 16: odd64[:6].tobytes()}[kind.itemsize]
        for copies in (1, 97):  # alone in a shared unit, and as a unit of its own
            whole = data * copies
            tensors.append(Tensor(f"{name}.{copies}", name, (len(whole) // kind.itemsize,), whole))
    return tensors


@pytest.mark.parametrize("profile", ["fast", "balanced", "max"])
def test_every_pattern_of_every_dtype_is_exact(profile: str, built: New) -> None:
    tensors = patterns()
    archive = built({b"p.safetensors": safetensors_bytes(tensors)}, profile=profile).archive(jobs=1)
    for tensor in tensors:
        assert archive.numpy(tensor.name).tobytes() == tensor.data, tensor.name
        kind = getattr(torch, DTYPES[tensor.dtype].torch, None)
        if kind is not None:
            found = archive.get_tensor(tensor.name)
            assert found.dtype == kind and found.shape == tensor.shape and bits(found) == tensor.data, tensor.name


# -- slices ----------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (2100, 1024),
    "wide": (3, 1_100_000),
    "tall": (70_003, 4),
    "vector": (300_007,),
    "deep": (40, 8, 16, 32),
    "small": (5, 7),
    "scalar": (),
    "one": (1,),
    "none": (0, 4),
    "flat": (4, 0),
}


@pytest.fixture(scope="module")
def sliced(built: New) -> dict[int, tuple[Archive, dict[str, torch.Tensor]]]:
    tensors = [
        Tensor(name, dtype, shape, gaussian(shape, dtype, RNG))
        for (name, shape), dtype in zip(SHAPES.items(), ["BF16", "F32", "F16", "BF16"] * 3, strict=False)
    ]
    data = safetensors_bytes(tensors)
    return {
        parallel: (built({b"m.safetensors": data}, tensor_parallel=parallel, jobs=2).archive(jobs=2), truth(data))
        for parallel in (1, 4)
    }


FIXED: list[Any] = [
    ...,
    (),
    0,
    -1,
    True,
    None,
    slice(None),
    slice(1, 3),
    slice(3, 1),
    slice(-2, None),
    slice(None, None, 3),
    slice(1, -1, 7),
    slice(10**9),
    (slice(None), slice(1, 3)),
    (slice(1, 3), slice(250, 600)),
    (slice(1, 3), 300),
    (0, slice(None, None, 5)),
    (..., 0),
    (..., slice(1, 2)),
    (0, ...),
    (slice(None), None),
    torch.tensor([0, 2]),
    torch.tensor([], dtype=torch.int64),
    (slice(0, 2), torch.tensor([0, 1])),
    torch.tensor([2, 0, 0]),
    np.int64(1),
    (np.int64(1), slice(np.int64(0), np.int64(2))),
    10**9,
    -(10**9),
    (0,) * 5,
    slice(None, None, -1),
    slice(None, None, 0),
    "text",
    1.5,
]


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_kind_of_index_does_what_torch_does(sliced: Any, name: str, parallel: int) -> None:
    archive, wanted = sliced[parallel]
    part, tensor = archive.get_slice(name), wanted[name]
    assert part.get_shape() == list(tensor.shape) and DTYPES[part.get_dtype()].torch == str(tensor.dtype)[6:]
    for index in FIXED:
        check_index(part, tensor, index)


def check_index(part: Any, tensor: torch.Tensor, index: Any) -> None:
    try:
        expected = tensor[index]
    except (IndexError, ValueError, TypeError) as error:
        with pytest.raises(type(error)):
            part[index]
        return
    assert same(part[index], expected), index


def keys(length: int) -> st.SearchStrategy[Any]:
    number = st.integers(-length - 2, length + 2)
    piece = st.builds(slice, st.none() | number, st.none() | number, st.none() | st.integers(1, 9))
    return piece | number | st.just(...) | st.just(slice(None))


@pytest.mark.parametrize("parallel", [1, 4])
@hypothesis.settings(max_examples=150)
@given(data=st.data())
def test_any_index_does_what_torch_does(sliced: Any, parallel: int, data: st.DataObject) -> None:
    archive, wanted = sliced[parallel]
    name = data.draw(st.sampled_from(sorted(SHAPES)))
    index = tuple(data.draw(keys(length)) for length in SHAPES[name][: data.draw(st.integers(0, 4))])
    check_index(archive.get_slice(name), wanted[name], index if len(index) != 1 else index[0])


@pytest.mark.parametrize("parallel", [1, 4])
def test_masks_and_whole_tensors(sliced: Any, parallel: int) -> None:
    archive, wanted = sliced[parallel]
    for name, tensor in wanted.items():
        assert same(archive.get_tensor(name), tensor), name
        assert archive.numpy(name).tobytes() == bits(tensor) and archive.numpy(name).shape == tuple(tensor.shape)
        if tensor.ndim:
            mask = torch.zeros(tensor.shape[0], dtype=torch.bool)
            mask[::2] = True
            check_index(archive.get_slice(name), tensor, mask)
    assert archive.get_tensor("matrix").is_contiguous()
    archive.get_tensor("matrix").zero_()  # it is the caller's own
    assert same(archive.get_tensor("matrix"), wanted["matrix"])


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_slices_of_either_framework(sliced: Any, framework: str, built: New, tmp_path: Path) -> None:
    wanted = {"x": torch.arange(600.0).reshape(20, 30)}
    arzstream.torch.save_file(wanted, tmp_path / "x.arz")
    with arzstream.safe_open(tmp_path / "x.arz", framework) as opened:
        part = opened.get_slice("x")[2:5, ::2]
        assert isinstance(part, np.ndarray if framework == "np" else torch.Tensor)
        assert np.asarray(part).tolist() == wanted["x"][2:5, ::2].tolist()


# -- views, storages, duplicates -------------------------------------------------------------------------------


def test_tensors_of_a_torch_file_are_what_torch_loads(built: New, torch_saved: New) -> None:
    base = torch.from_numpy(RNG.standard_normal((300, 400)).astype("f4"))
    tied = torch.from_numpy(RNG.standard_normal((200, 200)).astype("f4"))
    wanted = {
        "base": base,
        "transposed": base.t(),
        "rows": base[10:20],
        "columns": base[:, 5:9],
        "stepped": base[::7, ::3],
        "permuted": base.reshape(30, 10, 400).permute(2, 0, 1),
        "expanded": base[0, :1].expand(9),
        "scalar": base[3, 4],
        "nothing": base[:0],
        "tied.a": tied,
        "tied.b": tied,
        "parameter": torch.nn.Parameter(base[:5, :5].clone()),
        "half": base.half().t(),
        "complex": torch.complex(base[:3], base[3:6]),
        "bools": base[:5] > 0,
    }
    data = torch_saved(wanted)
    archive = built({b"m.pt": data}).archive(jobs=2)
    assert sorted(archive.keys()) == sorted(wanted)
    for name, tensor in wanted.items():
        assert same(archive.get_tensor(name), tensor), name
        assert np.ascontiguousarray(archive.numpy(name)).tobytes() == bits(tensor), name
        for index in (0, slice(1, 3), (..., slice(0, 2)), [0, 0], (slice(None, None, 2),)):
            check_index(archive.get_slice(name), tensor, index)
    loaded = torch.load(archive.open_file("m.pt"), weights_only=True)
    assert all(same(loaded[name], tensor.detach()) for name, tensor in wanted.items())
    streamed = dict(archive.stream())
    assert all(same(streamed[name], tensor) for name, tensor in wanted.items())


def test_equal_tensors_are_stored_once(built: New) -> None:
    data = gaussian((400, 300), "BF16", RNG)
    files = {
        b"a.safetensors": safetensors_bytes([Tensor("embed", "BF16", (400, 300), data)]),
        b"b.safetensors": safetensors_bytes(
            [Tensor("head", "BF16", (400, 300), data), Tensor("other", "BF16", (300, 400), data)]
        ),
    }
    sink = built(files)
    archive = sink.archive(jobs=1)
    for name in ("embed", "head", "other"):
        assert archive.numpy(name).tobytes() == data
    assert sink.size < 2.2 * len(data)
    assert archive.get_slice("head")[5:9].shape == (4, 300)


def reshaped_duplicates(sink: Any, copies: int) -> bytes:
    """What our writer does not write, but others may: duplicates with another shape and fewer elements."""
    writer = FrameWriter(sink)
    rows = 6
    plain = RNG.bytes(rows * 4)
    first = Unit("U8", (rows * 4, 1), (3, 1), (Member("first", (rows * 4,)),))
    number = writer.add_unit(first)
    for chunk in range(first.chunk_count):
        tile = first.tile(chunk)
        part = plain[tile.row0 : tile.row1]
        writer.add_chunk(number, chunk, 0, part, len(part), xxh3_64(part))
    done = [(number, (blake3(plain),))]
    pieces = [Piece(number, 0, len(plain))]
    for copy in range(copies):
        shape = [(rows, 4), (4, rows), (2, 3), (1, 20)][copy % 4]
        size = shape[0] * shape[1]
        unit = Unit("U8", shape, (1, 2), (Member(f"copy{copy}", shape),), refs=(Reference(2, number, 0, size),))
        done.append((writer.add_unit(unit), (blake3(plain[:size]),)))
        pieces.append(Piece(done[-1][0], 0, size))
    writer.commit("", done)
    content = plain + b"".join(plain[: piece.length] for piece in pieces[1:])
    sha256 = sha256_hasher()
    sha256.update(content)
    writer.add_file(FileRecord(b"f", size=len(content), sha256=sha256.digest(), recipe=tuple(pieces)))
    writer.commit("")
    writer.seal([n for n, _ in done])
    return plain


@pytest.mark.parametrize("jobs", [1, 2])
def test_duplicates_of_another_shape(jobs: int, new_sink: New) -> None:
    sink = new_sink()
    plain = reshaped_duplicates(sink, 12)
    archive = sink.archive(jobs=jobs)
    finished = threading.Event()

    def read() -> None:
        streamed = dict(archive.stream(framework="np"))
        for copy in range(12):
            shape = [(6, 4), (4, 6), (2, 3), (1, 20)][copy % 4]
            wanted = np.frombuffer(plain[: shape[0] * shape[1]], np.uint8).reshape(shape)
            assert (streamed[f"copy{copy}"] == wanted).all()
            assert (archive.numpy(f"copy{copy}") == wanted).all()
            assert (archive.get_slice(f"copy{copy}")[1:3, 1:].numpy() == wanted[1:3, 1:]).all()
        finished.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert finished.is_set(), "decoding waits for itself"


def test_names_that_two_files_share(built: New) -> None:
    def one(value: float) -> bytes:
        return safetensors_bytes([Tensor("w", "F32", (2,), np.float32([value, value]).tobytes())])

    import io

    out = io.BytesIO()
    torch.save({"w": torch.zeros(2), "x": torch.ones(1)}, out)
    archive = built({b"a.pt": out.getvalue(), b"b.safetensors": one(1), b"sub/c.safetensors": one(2)}).archive(jobs=1)
    assert archive.keys() and set(archive.keys()) == {"w", "a.pt:w", "sub/c.safetensors:w", "x"}
    assert archive.numpy("w").tolist() == [1, 1], "the first safetensors file has the plain name"
    assert archive.numpy("b.safetensors:w").tolist() == [1, 1]
    assert archive.numpy("a.pt:w").tolist() == [0, 0]
    assert archive.numpy("sub/c.safetensors:w").tolist() == [2, 2]
    assert {name for names in archive.layers().values() for name in names} == set(archive.keys())
    with pytest.raises(KeyError, match="did you mean"):
        archive.get_tensor("b.safetensors:v")


# -- order, streaming, threads ---------------------------------------------------------------------------------


def test_tensors_come_in_layer_order(built: New) -> None:
    tensors = model("llama", layers=12, width=64, vocabulary=128)
    rng = np.random.default_rng(0)
    shuffled = [tensors[i] for i in rng.permutation(len(tensors))]
    files = {b"2.safetensors": safetensors_bytes(shuffled[::2]), b"1.safetensors": safetensors_bytes(shuffled[1::2])}
    archive = built(files, jobs=2).archive(jobs=2)
    layers = [f"model.layers.{i}" for i in range(12)]
    assert next(iter(archive.layers())) == "model.embed_tokens"
    assert [name for name in archive.layers() if name in layers] == layers
    assert set(list(archive.layers())[13:]) == {"model.norm", "lm_head"}
    assert [name for name, _ in archive.stream()] == archive.keys()
    assert sorted(n for names in archive.layers().values() for n in names) == sorted(archive.keys())
    chosen = [name for name, _ in archive.stream(only="model.layers.1?.*")]
    assert chosen and all(name.startswith(("model.layers.10.", "model.layers.11.")) for name in chosen)
    assert list(archive.stream(only="nothing")) == []


@pytest.mark.parametrize("prefetch", [0, 1, 3 << 20, 256 << 20])
def test_streaming_holds_no_more_than_asked(prefetch: int, built: New, new_sink: New) -> None:
    size = 1 << 20
    tensors = [Tensor(f"layers.{i}.w", "F32", (size // 4,), np.random.default_rng(i).bytes(size)) for i in range(24)]
    archive = built({b"m.safetensors": safetensors_bytes(tensors)}).archive(jobs=2)
    tracemalloc.start()
    try:
        for i, (name, array) in enumerate(archive.stream(prefetch_bytes=prefetch, framework="np")):
            assert (name, array.tobytes()) == (tensors[i].name, tensors[i].data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        archive.close()
    assert peak < min(prefetch, 24 * size) + 9 * size
    if prefetch > 24 * size:
        assert peak > 20 * size, "it does decode ahead"


def test_a_stream_may_be_left_early(built: New) -> None:
    tensors = model("llama", layers=4, width=128, vocabulary=128)
    before = threading.active_count()
    for _ in range(5):
        archive = built({b"m.safetensors": safetensors_bytes(tensors)}).archive(jobs=4)
        for _ in archive.stream():
            break
        archive.close()
    assert threading.active_count() == before


def test_many_threads_may_read_at_once(built: New) -> None:
    tensors = model("llama", layers=6, width=96, vocabulary=200)
    data = {t.name: t.data for t in tensors}
    archive = built({b"m.safetensors": safetensors_bytes(tensors), b"x.json": b"{}" * 999}).archive(jobs=3)
    state = archive.state_dict()
    assert list(state) == archive.keys() and len(state) == len(data) and "nothing" not in state
    with pytest.raises(KeyError):
        state["nothing"]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for name in rng.permutation(sorted(data)):
            assert bits(state[name][...]) == data[name]
            if rng.random() < 0.3:
                assert archive.numpy(name).tobytes() == data[name]
                assert archive.read_file("x.json") == b"{}" * 999

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))


def test_state_dict_can_be_narrowed(built: New) -> None:
    tensors = model("llama", layers=2, width=32, vocabulary=64)
    archive = built({b"m.safetensors": safetensors_bytes(tensors)}).archive(jobs=1)
    state = archive.state_dict("model.layers.0.*")
    assert state and all(name.startswith("model.layers.0.") for name in state)
    with pytest.raises(KeyError):
        state["lm_head.weight"]


# -- files -----------------------------------------------------------------------------------------------------


def test_files_can_be_read_at_any_place(built: New, torch_saved: New) -> None:
    data = safetensors_bytes(model("gpt2", layers=1, width=128, vocabulary=300), {"k": "v"})
    zipped = torch_saved({"x": torch.arange(100_000.0), "y": [torch.ones(3)]})
    archive = built({b"m.safetensors": data, b"a/o.pt": zipped, b"empty": b""}).archive(jobs=2)
    rng = np.random.default_rng(3)
    with archive.open_file("m.safetensors") as file:
        assert file.seekable() and file.readable() and not file.writable()
        for _ in range(60):
            at, length = int(rng.integers(0, len(data) + 50)), int(rng.choice([0, 1, 7, 100, 5000, 200_000]))
            assert file.seek(at) == at == file.tell()
            assert file.read(length) == data[at : at + length]
        assert file.seek(-10, os.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:] and file.read() == b"" and file.read(5) == b""
        file.seek(5)
        file.seek(10, os.SEEK_CUR)
        buffer = bytearray(100)
        assert file.readinto(buffer) == 100 and buffer == data[15:115]
        with pytest.raises(ValueError):
            file.seek(-1)
    assert archive.open_file("empty").read() == archive.read_file("empty") == b""
    with zipfile.ZipFile(archive.open_file("a/o.pt")) as opened:
        assert opened.testzip() is None
    assert torch.load(archive.open_file("a/o.pt"), weights_only=True)["x"].tolist() == list(range(100_000))
    assert archive.metadata() == archive.metadata("m.safetensors") == {"k": "v"} and archive.metadata("empty") == {}
    for missing in ("nothing", "a", ""):
        with pytest.raises(KeyError):
            archive.read_file(missing)


# -- what it costs ---------------------------------------------------------------------------------------------


class Counting:
    """A reader around another one that counts bytes."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name = inner, inner.name
        self.reads: list[int] = []

    @property
    def size(self) -> int:
        return int(self.inner.size)

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append(length)
        return bytes(self.inner.read_at(offset, length))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def tail(self, length: int) -> tuple[int, bytes]:
        size, data = self.inner.tail(length)
        self.reads.append(len(data))
        return size, data

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("parallel", [1, 8])
def test_reading_touches_only_what_is_asked_for(parallel: int, built: New) -> None:
    rows, columns = 8192, 1024
    tensors = [
        Tensor(f"layers.{i}.w", "BF16", (rows, columns), np.random.default_rng(i).bytes(rows * columns * 2))
        for i in range(4)
    ]
    sink = built({b"m.safetensors": safetensors_bytes(tensors)}, tensor_parallel=parallel)
    counting = Counting(sink)
    archive = Archive(counting, jobs=1)
    assert len(counting.reads) <= 2 and sum(counting.reads) < 300_000
    one = rows * columns * 2
    counting.reads.clear()
    archive.numpy("layers.1.w")
    assert sum(counting.reads) < one * 1.01
    counting.reads.clear()
    part = archive.get_slice("layers.2.w")[4000:4010]
    assert bits(part) == tensors[2].data[4000 * columns * 2 : 4010 * columns * 2]
    assert sum(counting.reads) < one / 7.9 + 1000 * len(counting.reads)
    counting.reads.clear()
    if parallel == 8:  # a rank's columns
        archive.get_slice("layers.2.w")[:, 128:256]
        assert sum(counting.reads) < one / 7.9 + 1000 * len(counting.reads)
    counting.reads.clear()
    archive.read_file("m.safetensors")
    assert sum(counting.reads) < 4 * one * 1.01
    counting.reads.clear()
    archive.keys(), archive.layers(), archive.files(), archive.metadata(), archive.get_slice("layers.0.w").get_shape()
    assert not counting.reads


@pytest.mark.parametrize("chunk", [1 << 10, 100_000])
def test_reading_a_file_in_small_steps_decodes_each_chunk_about_once(chunk: int, built: New) -> None:
    data = np.random.default_rng(1).bytes(8 << 20)
    for name, content in (
        (b"x.bin", data),
        (b"x.safetensors", safetensors_bytes([Tensor("w", "F64", (1 << 20,), data)])),
    ):
        counting = Counting(built({name: content}))
        archive = Archive(counting, jobs=1)
        counting.reads.clear()
        with archive.open_file(os.fsdecode(name)) as file:
            assert b"".join(iter(lambda file=file: file.read(chunk), b"")) == content  # type: ignore[misc]
        assert sum(counting.reads) < 1.2 * len(content)


def test_small_tensors_of_a_layer_cost_one_read(built: New) -> None:
    tensors = [
        Tensor(f"layers.0.norm{i}.weight", "F32", (100,), np.random.default_rng(i).bytes(400)) for i in range(50)
    ]
    counting = Counting(built({b"m.safetensors": safetensors_bytes(tensors)}))
    archive = Archive(counting, jobs=1)
    counting.reads.clear()
    for tensor in tensors:
        assert archive.numpy(tensor.name).tobytes() == tensor.data
    assert len(counting.reads) == 1


def test_a_growing_archive_has_the_committed_layers(new_source: New, new_sink: New) -> None:
    tensors = [Tensor(f"layers.{i}.w", "F32", (50_000,), np.random.default_rng(i).bytes(200_000)) for i in range(5)]
    data = safetensors_bytes(tensors)
    source, sink = new_source(data), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"m.safetensors", source)
        for count in range(1, 6):
            builder.update(job, len(data) - (5 - count) * 200_000)
            archive = sink.archive(jobs=1)
            assert archive.keys() == [t.name for t in tensors[:count]] and not archive.sealed
            assert archive.content_digest() is None and archive.files() == []
            assert [(n, a.tobytes()) for n, a in archive.stream(framework="np")] == [
                (t.name, t.data) for t in tensors[:count]
            ]
            with pytest.raises(arzstream.CorruptError, match="no end"):
                arzstream.unpack(archive, "never")
