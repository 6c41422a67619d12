"""Building while files land: frontiers, changes under our hands, files that vanish, proof of what was written."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.verify import _decode_all, verify_reader
from arzstream.container.directory import open_directory
from arzstream.container.layout import FrameType
from arzstream.errors import ArzError, CorruptError, SourceChangedError, StorageError
from arzstream.testing import forge
from arzstream.testing.tensors import Tensor, gaussian, model, safetensors_bytes

New = Callable[..., Any]


def checked(sink: Any, files: dict[str, bytes]) -> Any:
    """Verify a sealed archive deeply and compare its files; returns it open."""
    report = verify_reader(sink)
    directory = open_directory(sink)
    archive = sink.archive(jobs=1)
    _decode_all(archive.decoder, directory, None)
    assert sorted(archive.files()) == sorted(files) and report.files == len(files)
    for path, data in files.items():
        assert archive.read_file(path) == data, path
    return archive


def big(seed: int = 0, layers: int = 3) -> list[Tensor]:
    return model("llama", layers=layers, width=192, vocabulary=300, seed=seed)


def finish(builder: CheckpointBuilder, job: Any, data: bytes) -> None:
    builder.finish(job, size=len(data), mode=0o644, mtime=1)


@pytest.mark.parametrize("step", [1777, 20_011, 250_000])
@pytest.mark.parametrize("kind", ["safetensors", "torch zip", "random", "text"])
def test_updates_at_many_frontiers_give_the_same_files(
    kind: str, step: int, new_source: New, new_sink: New, torch_saved: New
) -> None:
    if kind == "safetensors":
        name, data = b"model.safetensors", safetensors_bytes(big(layers=1), {"format": "pt"})
    elif kind == "torch zip":
        import torch

        tensors = {t.name: torch.frombuffer(bytearray(t.data), dtype=torch.bfloat16) for t in big(layers=1)}
        name, data = b"model.pt", torch_saved(tensors)
    else:
        name = b"blob"
        data = np.random.default_rng(1).bytes(300_000) if kind == "random" else b"some words " * 30_000
    source, sink = new_source(b""), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(name, source)
        for frontier in range(0, len(data), step):
            source.data[:] = data[:frontier]
            builder.update(job, frontier)
        source.data[:] = data
        finish(builder, job, data)
        builder.verify_written(sink)
        summary = builder.seal()
    assert summary.bytes_in == len(data) and summary.bytes_out == sink.size
    checked(sink, {os.fsdecode(name): data})


def test_layers_are_committed_before_the_last_byte_is_there(new_source: New, new_sink: New) -> None:
    tensors = big(layers=8)
    data = safetensors_bytes(sorted(tensors, key=lambda t: t.name))
    source, sink = new_source(data), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"model.safetensors", source)
        coded = builder.update(job, len(data) * 9 // 10)
        assert coded > len(data) * 0.6
        growing = sink.archive(jobs=1)
        assert not growing.sealed
        for name in list(growing.keys()):
            wanted = next(t for t in tensors if t.name == name)
            assert growing.numpy(name).tobytes() == wanted.data
        assert len(growing.keys()) > len(tensors) // 2
        assert builder.update(job, len(data) * 9 // 10) == 0
        finish(builder, job, data)
        builder.seal()
    checked(sink, {"model.safetensors": data})


def regions(data: bytes) -> dict[str, int]:
    length = int.from_bytes(data[:8], "little")
    return {"a header's padding": 8 + length - 1, "first tensor": 8 + length, "last byte": len(data) - 1}


@pytest.mark.parametrize("where", ["a header's padding", "first tensor", "last byte", "everything"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_what_is_rewritten_after_it_was_coded_is_coded_again(
    where: str, jobs: int, new_source: New, new_sink: New
) -> None:
    tensors = [
        *big(layers=1),
        Tensor("a-long-one", "F32", (3000, 1000), gaussian((3000, 1000), "F32", np.random.default_rng(3))),
    ]
    before = safetensors_bytes(tensors)
    before = before[: 8 + int.from_bytes(before[:8], "little")] + before[8 + int.from_bytes(before[:8], "little") :]
    after = bytearray(before)
    if where == "everything":
        after = bytearray(safetensors_bytes([*big(seed=9, layers=1), *tensors[-1:]]))
        assert len(after) == len(before)
    elif where == "a header's padding":
        header = before[8 : regions(before)["first tensor"]].rstrip(b" ") + b" " * 16
        before = len(header).to_bytes(8, "little") + header + before[regions(before)["first tensor"] :]
        after = bytearray(before)
        after[regions(before)[where]] = ord("\n")
    else:
        after[regions(before)[where]] ^= 1
    source, sink = new_source(before), new_sink()
    with CheckpointBuilder(sink, jobs=jobs) as builder:
        job = builder.add_file(b"model.safetensors", source)
        builder.update(job, len(before))
        builder.verify_written(sink)
        source.data[:] = after
        finish(builder, job, bytes(after))
        builder.verify_written(sink)
        builder.seal()
    archive = checked(sink, {"model.safetensors": bytes(after)})
    replaced = where != "a header's padding"
    assert (archive.directory.dead[0] > 0) == replaced
    if where == "first tensor" or where == "last byte":
        assert archive.directory.dead[0] == 1, "only the chunk that changed is coded again"


def change_at_the_second_read(source: Any, after: bytes, place: int) -> None:
    """The second time that byte ``place`` is read, something else is there."""
    reads = 0

    def change(offset: int, length: int) -> None:
        nonlocal reads
        if offset <= place < offset + length:
            reads += 1
            if reads == 2:
                source.data[:] = after

    source.before_read = change


def test_a_literal_that_is_rewritten_is_coded_again(new_source: New, new_sink: New) -> None:
    for size in (100, 5000, 300_000, 5 << 20):
        before = np.random.default_rng(2).bytes(size)
        after = bytearray(before)
        after[size // 2] ^= 1
        source, sink = new_source(before), new_sink()
        with CheckpointBuilder(sink) as builder:
            job = builder.add_file(b"x.json", source)
            builder.update(job, size)
            change_at_the_second_read(source, bytes(after), size // 2)
            finish(builder, job, before)
            builder.seal()
        checked(sink, {"x.json": bytes(after)})


def test_a_source_that_flickers_while_it_is_coded_again_keeps_true_digests(new_source: New, new_sink: New) -> None:
    """Changed when it is coded again, as before when it is hashed, changed when it is compared."""
    tensors = [Tensor("w", "F32", (3000, 1000), gaussian((3000, 1000), "F32", np.random.default_rng(3)))]
    before = safetensors_bytes(tensors)
    after = bytearray(before)
    after[-1] ^= 1
    source, sink = new_source(before), new_sink()
    reads = 0

    def flicker(offset: int, length: int) -> None:
        nonlocal reads
        if offset + length == len(before) and length > 100:
            reads += 1
            source.data[-1] = before[-1] if reads == 3 else after[-1]  # compared, coded again, hashed, compared

    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"w.safetensors", source)
        builder.update(job, len(before))
        source.before_read = flicker
        finish(builder, job, bytes(after))
        builder.seal()
    assert reads >= 4
    checked(sink, {"w.safetensors": bytes(after)})


def test_a_new_header_moves_the_tensors(new_source: New, new_sink: New) -> None:
    """The writer first said one thing, then another: what was coded under the old header is dead."""
    old = safetensors_bytes([Tensor("x", "F32", (200, 200), bytes(160_000)), Tensor("y", "F32", (100,), bytes(400))])
    new = safetensors_bytes([Tensor("z", "BF16", (400, 200), gaussian((400, 200), "BF16", np.random.default_rng(1)))])
    source, sink = new_source(old), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"model.safetensors", source)
        builder.update(job, len(old))
        source.data[:] = new
        finish(builder, job, new)
        builder.seal()
    archive = checked(sink, {"model.safetensors": new})
    assert archive.keys() == ["z"] and archive.directory.dead[0] > 0


def twins(rng: np.random.Generator) -> tuple[bytes, bytes]:
    data = gaussian((300, 300), "F32", rng)
    one = safetensors_bytes([Tensor("one", "F32", (300, 300), data)])
    two = safetensors_bytes([Tensor("two", "F32", (300, 300), data)])
    return one, two


@pytest.mark.parametrize("which", ["the original", "the copy", "both", "both, to the same"])
def test_duplicates_may_be_rewritten(which: str, new_source: New, new_sink: New) -> None:
    one, two = twins(np.random.default_rng(4))
    sources = [new_source(one), new_source(two)]
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        jobs = [builder.add_file(b"%d.safetensors" % i, source) for i, source in enumerate(sources)]
        for job, source in zip(jobs, sources, strict=True):
            builder.update(job, source.size)
        assert sum(1 for f in forge.frames(bytes(sink.data)) if f.kind == FrameType.CHUNK) == 1
        if which != "the copy":
            sources[0].data[-1] ^= 1
        if which != "the original":
            sources[1].data[-1] ^= 1 if which.endswith("same") else 2
        for job, source in zip(jobs, sources, strict=True):
            finish(builder, job, bytes(source.data))
        builder.verify_written(sink)
        builder.seal()
    archive = checked(sink, {f"{i}.safetensors": bytes(s.data) for i, s in enumerate(sources)})
    assert archive.numpy("one").tobytes() == sources[0].data[-360_000:]
    assert archive.numpy("two").tobytes() == sources[1].data[-360_000:]
    assert sorted(archive.keys()) == ["one", "two"]


def test_a_source_that_keeps_changing_is_given_up(new_source: New, new_sink: New) -> None:
    data = safetensors_bytes(big(layers=1))
    source, sink = new_source(data), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"restless.safetensors", source)

        def change(offset: int, length: int) -> None:
            if length >= 1 << 19:
                source.data[-1] = (source.data[-1] + 1) % 256

        source.before_read = change
        source.data += bytes(4 << 20)  # opaque now, one large literal
        with pytest.raises(SourceChangedError, match=r"^restless\.safetensors: .*try again"):
            finish(builder, job, bytes(source.data))
        source.before_read = lambda offset, length: None
        finish(builder, job, bytes(source.data))
        builder.seal()
    checked(sink, {"restless.safetensors": bytes(source.data)})


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_source_that_is_cut_short_spoils_nothing_else(jobs: int, new_source: New, new_sink: New) -> None:
    data, other = safetensors_bytes(big(layers=2)), safetensors_bytes(big(seed=5, layers=1))
    source, sink = new_source(data), new_sink()
    with CheckpointBuilder(sink, jobs=jobs) as builder:
        job = builder.add_file(b"cut.safetensors", source)
        builder.update(job, len(data) // 4)
        del source.data[len(data) // 2 :]
        with pytest.raises(SourceChangedError, match=r"cut\.safetensors: was cut short"):
            builder.update(job, len(data))
        builder.withdraw(job)
        second = builder.add_file(b"whole.safetensors", new_source(other))
        finish(builder, second, other)
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {"whole.safetensors": other})


def test_a_source_that_is_cut_short_can_be_finished_later(new_source: New, new_sink: New) -> None:
    data = safetensors_bytes(big(layers=2))
    source, sink = new_source(data[: len(data) // 2]), new_sink()
    with CheckpointBuilder(sink, jobs=2) as builder:
        job = builder.add_file(b"model.safetensors", source)
        with pytest.raises(SourceChangedError):
            builder.update(job, len(data))
        with pytest.raises(SourceChangedError):
            finish(builder, job, data)
        source.data[:] = data
        finish(builder, job, data)
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {"model.safetensors": data})


def test_a_source_that_cannot_be_read_spoils_nothing(new_source: New, new_sink: New) -> None:
    data = safetensors_bytes(big(layers=2))
    source, sink = new_source(data), new_sink()
    reads = 0

    def fail(offset: int, length: int) -> None:
        nonlocal reads
        reads += 1
        if reads % 5 == 0:
            raise StorageError("source: input/output error")

    with CheckpointBuilder(sink, jobs=2) as builder:
        job = builder.add_file(b"model.safetensors", source)
        source.before_read = fail
        failures = 0
        for _ in range(60):
            try:
                builder.update(job, len(data))
                break
            except StorageError:
                failures += 1
        assert failures
        source.before_read = lambda offset, length: None
        finish(builder, job, data)
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {"model.safetensors": data})


def test_a_withdrawn_file_is_not_in_the_archive(new_source: New, new_sink: New) -> None:
    data, small = safetensors_bytes(big(layers=1)), b"{}"
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        kept = builder.add_file(b"kept.safetensors", new_source(data))
        gone = builder.add_file(b"gone.safetensors", new_source(data))
        never = builder.add_file(b"never.safetensors", new_source(safetensors_bytes(big(seed=3, layers=1))))
        little = builder.add_file(b"little.json", new_source(small))
        finish(builder, gone, data)
        finish(builder, kept, data)  # all duplicates of what is withdrawn
        finish(builder, little, small)
        builder.update(never, never.source.size)
        for job in (gone, never, little):
            builder.withdraw(job)
        again = builder.add_file(b"gone.safetensors", new_source(small))
        finish(builder, again, small)
        builder.seal()
    archive = checked(sink, {"kept.safetensors": data, "gone.safetensors": small})
    assert sorted(archive.keys()) == sorted(t.name for t in big(layers=1))


def test_a_renamed_file_has_its_last_name(new_source: New, new_sink: New) -> None:
    data = safetensors_bytes(big(layers=1))
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        late = builder.add_file(b".tmp-a", new_source(data))
        early = builder.add_file(b".tmp-b", new_source(data[:-1]))
        little = builder.add_file(b".tmp-c", new_source(b"{}"))
        builder.update(early, len(data) // 2)
        builder.rename(early, b"b.bin")
        finish(builder, early, data[:-1])
        finish(builder, little, b"{}")
        finish(builder, late, data)
        builder.rename(late, b"sub/a.safetensors")
        builder.rename(little, b"c.json")
        builder.add_directory(b"sub", 0o700, 3)
        builder.add_link(b"link", b"c.json", 0o777, 4)
        builder.seal()
    verify_reader(sink)
    archive = sink.archive(jobs=1)
    assert sorted(archive.files()) == ["b.bin", "c.json", "sub/a.safetensors"]
    assert archive.read_file("sub/a.safetensors") == data and archive.read_file("b.bin") == data[:-1]


def test_a_flipped_bit_on_the_disk_is_caught_by_the_proof(new_source: New, new_sink: New) -> None:
    data = safetensors_bytes(big(layers=1))
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"model.safetensors", new_source(data))
        builder.update(job, len(data) // 2)
        assert builder.verify_written(sink) > 0
        assert builder.verify_written(sink) == 0
        start = sink.size
        builder.update(job, len(data))
        chunk = next(f for f in forge.frames(bytes(sink.data)) if f.offset >= start and f.kind == FrameType.CHUNK)
        sink.data[chunk.offset + 200] ^= 4
        with pytest.raises(CorruptError, match=r"^memory\.arz: .*read back.*memory or the disk"):
            builder.verify_written(sink)
        sink.data[chunk.offset + 200] ^= 4
        assert builder.verify_written(sink) > 0


def test_a_chunk_that_decodes_to_something_else_is_caught_by_the_proof(
    new_source: New, new_sink: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that is wrong: the stored bytes are what was written, but not what the source is."""
    from arzstream.archive import pipeline

    right = pipeline.encode_best

    def wrong(data: memoryview, ctx: Any, profile: str) -> tuple[int, bytes]:
        codec, payload = right(data, ctx, profile)
        return (0, bytes(data[:-1]) + bytes([data[-1] ^ 1])) if len(data) > 100_000 else (codec, payload)

    monkeypatch.setattr(pipeline, "encode_best", wrong)
    data, sink = safetensors_bytes(big(layers=1)), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"model.safetensors", new_source(data))
        finish(builder, job, data)
        with pytest.raises(CorruptError, match="does not decode to the source"):
            builder.verify_written(sink)


def digest_of(files: dict[bytes, bytes], built: New, **options: Any) -> str:
    return hashlib.sha256(built(files, file_id=bytes(16), **options).data).hexdigest()


def test_the_bytes_do_not_depend_on_threads_or_memory(built: New, torch_saved: New) -> None:
    import torch

    files = {
        b"a.safetensors": safetensors_bytes(big(layers=2)),
        b"b.safetensors": safetensors_bytes(big(layers=2)),
        b"c.pt": torch_saved({"x": torch.arange(500_000.0).reshape(500, 1000).t()}),
        b"d.json": b"{}" * 1000,
        b"e.bin": np.random.default_rng(1).bytes(3 << 20),
    }
    first = digest_of(files, built)
    assert first == digest_of(files, built, jobs=8)
    assert first == digest_of(files, built, jobs=3, memory_bytes=1)
    assert first != digest_of(files, built, profile="fast")


def test_memory_is_bounded(new_source: New, new_sink: New) -> None:
    """At most about ``memory_bytes`` of chunks are read ahead of what was written."""
    rows, columns = 6000, 1024  # 24 MiB of fp32 in chunks of 4 MiB
    data = safetensors_bytes([Tensor("w", "F32", (rows, columns), np.random.default_rng(1).bytes(rows * columns * 4))])
    source, sink = new_source(data), new_sink()
    ahead = 0
    read = 0

    def count(offset: int, length: int) -> None:
        nonlocal ahead, read
        if length > 1 << 20:
            read += length
            ahead = max(ahead, read - sink.size)

    source.before_read = count
    with CheckpointBuilder(sink, jobs=4, memory_bytes=16 << 20) as builder:
        job = builder.add_file(b"w.safetensors", source)
        builder.plan(job, len(data), final=True)
        builder.update(job, len(data), final=True)
        assert ahead <= 16 << 20


def test_frames_are_shared_by_small_layers(new_source: New, new_sink: New) -> None:
    """One frame announces all units; a tensor of a small layer costs its bytes, a digest and little else."""
    tensors = [Tensor(f"blocks.{i}.w", "U8", (4096,), np.random.default_rng(i).bytes(4096)) for i in range(60)]
    data, sink = safetensors_bytes(tensors), new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"w.safetensors", new_source(data))
        finish(builder, job, data)
        builder.seal()
    kinds = [frame.kind for frame in forge.frames(sink.read_at(0, sink.size))]
    assert kinds.count(FrameType.TENSOR) == 2 and kinds.count(FrameType.COMMIT) == 2  # tensors; header and file
    assert sink.size - 60 * 4096 < 60 * (32 + 30) + 3000
    assert list(checked(sink, {"w.safetensors": data}).layers()) == [f"blocks.{i}" for i in range(60)]


def test_threads_end_with_the_builder(new_source: New, new_sink: New) -> None:
    before = threading.active_count()
    data = safetensors_bytes(big(layers=1))
    with CheckpointBuilder(new_sink(), jobs=4) as builder:
        job = builder.add_file(b"a.safetensors", new_source(data))
        builder.plan(job, len(data), final=True)
        builder.set_jobs(2)
    assert threading.active_count() == before
    with pytest.raises(ArzError), CheckpointBuilder(new_sink(), jobs=4) as builder:
        source = new_source(data)
        job = builder.add_file(b"a.safetensors", source)
        del source.data[-1000:]
        builder.update(job, len(data))
    assert threading.active_count() == before
