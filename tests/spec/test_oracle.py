"""What the package writes, the reference decoder reads: the same tensors and files, sealed or growing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import described_file, reference

from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.pack import pack
from arzstream.archive.verify import verify
from arzstream.codec.dtypes import DTYPES
from arzstream.errors import StorageError

Tensors = list[tuple[str, str, tuple[int, ...], bytes]]
SAFETENSORS_DTYPES = sorted(set(DTYPES) - {"C128"})


def safetensors(tensors: Tensors) -> bytes:
    header: dict[str, Any] = {}
    at = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, _, data in tensors)


def elements(dtype: str, count: int, pattern: str, seed: int) -> bytes:
    """``count`` elements: like weights, all alike, text-like, or any bits at all."""
    nbytes = count * DTYPES[dtype].itemsize
    random = np.random.default_rng(seed)
    if pattern == "any":
        return random.bytes(nbytes)
    if pattern == "alike":
        return (random.bytes(DTYPES[dtype].itemsize) * count)[:nbytes]
    if pattern == "few":
        return random.integers(0, 4, nbytes, np.uint8).tobytes()
    values = (random.standard_normal(count) * 0.02).astype(np.float32)
    size = DTYPES[dtype].itemsize
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    floats = {2: "<f2", 4: "<f4", 8: "<f8"}.get(size)
    return values.astype(floats).tobytes() if floats else random.bytes(nbytes)


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    found: Tensors = []
    for i in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from(SAFETENSORS_DTYPES))
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 31, 64]), max_size=3)))
        count = int(np.prod(shape, dtype=np.int64))
        if count > 4500:
            shape, count = (count % 97 + 1, 11), (count % 97 + 1) * 11
        pattern = draw(st.sampled_from(["weights", "any", "alike", "few"]))
        name = draw(st.sampled_from(["w", "層", "model.layers.0.x", "model.layers.10.x", "norm", ""])) + str(i)
        found.append((name, dtype, shape, elements(dtype, count, pattern, draw(st.integers(0, 3)))))
    if found and draw(st.booleans()):
        found.append(("tied", *found[0][1:]))
    return found


CONTENT = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda n: b"the same words again " * n, st.integers(1, 400)),
    tensors().map(safetensors),
)
NAMES = st.sampled_from([b"a.bin", b"config.json", b"model.safetensors", b"x y", b"\xff\xfe", "é".encode(), b"z.pt"])


@dataclasses.dataclass
class Folder:
    """A folder to be made: files by path, links, empty folders."""

    files: dict[bytes, bytes]
    links: dict[bytes, bytes]
    empty: set[bytes]
    mode: int

    def make(self, root: bytes) -> None:
        for path, content in self.files.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            Path(os.fsdecode(full)).write_bytes(content)
            os.chmod(full, self.mode)
            os.utime(full, ns=(self.mode * 10**9 + 7, len(content) * 10**9 + 123))
        for path in self.empty:
            os.makedirs(os.path.join(root, path))
        for path, target in self.links.items():
            os.symlink(target, os.path.join(root, path))


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    places = draw(st.lists(st.tuples(st.sampled_from([b"", b"sub/", b"sub/deep/"]), NAMES), max_size=5, unique=True))
    files = {folder + name: draw(CONTENT) for folder, name in places}
    links = {b"link": next(iter(files))} if files and draw(st.booleans()) else {}
    return Folder(
        files, links, {b"empty"} if draw(st.booleans()) else set(), draw(st.sampled_from([0o644, 0o600, 0o755]))
    )


def described(root: bytes) -> list[dict[str, Any]]:
    """What is below ``root``, in the words of vectors.json."""
    found = []
    for above, directories, files in os.walk(root):
        for name in [*directories, *files]:
            full = os.path.join(above, name)
            status, kind = os.lstat(full), 0
            content = b""
            if os.path.islink(full):
                kind, content = 1, os.readlink(full)
            elif os.path.isdir(full):
                kind = 2
            else:
                content = Path(os.fsdecode(full)).read_bytes()
            sha256 = hashlib.sha256(content if kind == 0 else b"").digest()
            path = os.path.relpath(full, root)
            found.append(described_file(path, kind, status.st_mode & 0o7777, status.st_mtime_ns, content, sha256))
    return sorted(found, key=lambda file: file["path"])


def files_of(decoded: Any) -> list[dict[str, Any]]:
    found = [described_file(p, f.kind, f.mode, f.mtime, f.content, f.sha256) for p, f in decoded.files.items()]
    return sorted(found, key=lambda file: file["path"])


def tensors_of(decoded: Any) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    assert all(blake3.blake3(t.data).digest() == t.blake3 for t in decoded.members)
    return sorted((t.name, t.dtype, t.shape, t.data) for t in decoded.members)


def read_header(content: bytes) -> Tensors:
    """The tensors of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    body, found = content[8 + length :], []
    for name, entry in json.loads(content[8 : 8 + length]).items():
        begin, end = entry["data_offsets"]
        found.append((name, entry["dtype"], tuple(entry["shape"]), body[begin:end]))
    return found


@settings(max_examples=40)
@given(folders(), st.sampled_from(["fast", "balanced", "max"]), st.sampled_from([1, 1, 3]))
def test_folders_come_back(folder: Folder, profile: str, tensor_parallel: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, archive = os.path.join(scratch, "checkpoint"), os.path.join(scratch, "out.arz")
        os.mkdir(root)
        folder.make(os.fsencode(root))
        pack(root, archive, profile=profile, tensor_parallel=tensor_parallel)
        decoded = reference.decode(Path(archive).read_bytes())
        assert files_of(decoded) == described(os.fsencode(root))
        parsed = {path: read_header(content) for path, content in folder.files.items() if is_safetensors(content)}
        sure = {tensor for path, found in parsed.items() if path.endswith(b".safetensors") for tensor in found}
        assert sure <= set(tensors_of(decoded)) <= {tensor for found in parsed.values() for tensor in found}
        assert decoded.content_digest.hex() == verify(archive, deep=True).content


def is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


@pytest.mark.parametrize(("dtype", "count"), [("BF16", 300_001), ("F32", 270_000), ("F16", 100_001), ("F64", 40_000)])
def test_large_tensors_of_several_segments_or_chunks_come_back(dtype: str, count: int, tmp_path: Path) -> None:
    tensor = ("w", dtype, (count,), elements(dtype, count, "weights", 1))
    (tmp_path / "model.safetensors").write_bytes(safetensors([tensor]))
    pack(tmp_path / "model.safetensors", tmp_path / "out.arz")
    data = (tmp_path / "out.arz").read_bytes()
    assert len(data) < 0.9 * len(tensor[3])
    assert tensors_of(reference.decode(data)) == [tensor]


class Memory:
    """A source that grows, and a sink."""

    name = "memory"

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        data = self.read_at(offset, len(buffer))
        if len(data) != len(buffer):
            raise StorageError("memory: ends too early")
        buffer[:] = data

    def write(self, data: bytes) -> None:
        self.data += data


STEPS = st.lists(st.sampled_from(["grow", "grow", "finish", "change", "rename", "withdraw"]), min_size=3, max_size=14)


@settings(max_examples=40)
@given(st.lists(tensors(), min_size=1, max_size=3), STEPS, st.randoms(use_true_random=False))
def test_growing_archives_read_at_every_step_and_sealed(contents: list[Tensors], steps: list[str], random: Any) -> None:
    """Files that grow, change after they were coded, are renamed, finished, or vanish, in any order."""
    sink = Memory()
    full = {i: bytearray(safetensors(content)) for i, content in enumerate(contents)}
    sources = {i: Memory() for i in full}
    paths = {i: b"file-%d.safetensors" % i for i in full}
    finished: set[int] = set()
    withdrawn: set[int] = set()
    with CheckpointBuilder(sink, jobs=1) as builder:  # type: ignore[arg-type]
        jobs = {i: builder.add_file(paths[i], source) for i, source in sources.items()}

        def finish(i: int) -> None:
            sources[i].data[:] = full[i]
            builder.finish(jobs[i], size=len(full[i]), mode=0o640, mtime=i)
            finished.add(i)

        for step in steps:
            i = random.choice(sorted(full))
            if i in withdrawn:
                continue
            source = sources[i]
            if step == "withdraw":
                builder.withdraw(jobs[i])
                withdrawn.add(i)
            elif step == "rename":
                paths[i] = b"renamed-%d.safetensors" % random.randrange(10**9)
                builder.rename(jobs[i], paths[i])
            elif i in finished:
                continue
            elif step == "grow":
                source.data[:] = full[i][: random.randint(len(source.data), len(full[i]))]
                builder.update(jobs[i], len(source.data))
            elif step == "finish":
                finish(i)
            elif len(source.data) > 8 + int.from_bytes(full[i][:8], "little"):
                place = random.randrange(8 + int.from_bytes(full[i][:8], "little"), len(source.data))
                full[i][place] ^= 1 + random.randrange(255)
                source.data[place] = full[i][place]
            decoded = reference.decode(bytes(sink.data))
            assert decoded.growing and not decoded.unsupported
            for path, file in decoded.files.items():
                assert any(paths[i] == path and bytes(full[i]) == file.content for i in finished - withdrawn)
        for i in sorted(set(full) - finished - withdrawn):
            finish(i)
        builder.seal()
    decoded = reference.decode(bytes(sink.data))
    assert not decoded.growing
    left = sorted(set(full) - withdrawn)
    assert {path: file.content for path, file in decoded.files.items()} == {paths[i]: bytes(full[i]) for i in left}
    named = {(t.name, t.dtype, t.shape, t.data) for t in decoded.members}
    assert named >= {tensor for i in left for tensor in read_header(bytes(full[i]))}


def test_torch_files_with_shared_storages_and_strides_come_back(tmp_path: Path) -> None:
    import torch

    matrix = torch.arange(120, dtype=torch.float32).reshape(8, 15)
    state = {
        "matrix": matrix,
        "transposed": matrix.t(),
        "column": matrix[:, 3],
        "slice": matrix[2:5, 4:9],
        "half": torch.randn(300, 40).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "complex": torch.randn(9, dtype=torch.complex64),
    }
    torch.save(state, tmp_path / "state.pt")
    pack(tmp_path / "state.pt", tmp_path / "out.arz")
    decoded = reference.decode((tmp_path / "out.arz").read_bytes())
    assert decoded.files[b"state.pt"].content == (tmp_path / "state.pt").read_bytes()
    found = {(tensor.name, tensor.shape): tensor.data for tensor in decoded.members}
    for name, tensor in state.items():
        if tensor.numel():
            raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            assert found[name, tuple(tensor.shape)] == raw, name
