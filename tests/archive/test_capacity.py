"""Whether a checkpoint fits into one archive is known before it is coded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest

from arzstream.archive import capacity
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.capacity import IndexRoom, listed
from arzstream.archive.plan import storage_unit
from arzstream.container import metadata
from arzstream.container.directory import open_directory
from arzstream.container.records import FileRecord, Reference
from arzstream.container.state import index_map
from arzstream.container.writer import FrameWriter
from arzstream.errors import UnsupportedError
from arzstream.formats.base import Storage, View
from arzstream.limits import Limits
from arzstream.testing.tensors import Tensor, model, safetensors_bytes

New = Callable[..., Any]
TOO_MANY = "too many tensors or files for one archive: its INDEX would .*; make more archives"


def big(layers: int = 6) -> bytes:
    tensors: list[Tensor] = model("llama", layers=layers, width=192, vocabulary=300)
    return safetensors_bytes(tensors, {"format": "pt"})


def index_of(builder: CheckpointBuilder) -> Any:
    state = builder.state
    digests = {number: (bytes(32),) * len(unit.members) for number, unit in state.units.items()}
    return index_map(state, digests, bytes(32), [], {})


def test_what_is_expected_is_about_what_the_index_is(new_source: New, new_sink: New) -> None:
    data = big()
    with CheckpointBuilder(new_sink()) as builder:
        job = builder.add_file(b"model.safetensors", new_source(data))
        builder.finish(job, size=len(data), mode=0o644, mtime=1)
        builder.seal()
        index = index_of(builder)
        counted, most = capacity._counted(job, job.layout), capacity._at_most(job, job.layout)  # type: ignore[arg-type]
    nbytes, items = len(metadata.pack(index)), metadata.count_items(index)
    assert 0.93 * nbytes < counted.nbytes < 1.07 * nbytes
    assert 0.93 * items < counted.items < 1.07 * items
    assert counted.nbytes < most.nbytes and counted.items < most.items


@pytest.mark.parametrize("limits", [Limits(metadata_bytes=8000), Limits(metadata_items=1000)])
def test_too_many_tensors_are_refused_before_the_first_is_coded(
    limits: Limits, new_source: New, new_sink: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arzstream.archive.builder.IndexRoom", functools.partial(IndexRoom, limits))
    data = big()
    half = {b"1.safetensors": big(3), b"2.safetensors": big(3)}
    for files in ({b"model.safetensors": data}, half):
        with CheckpointBuilder(new_sink()) as builder:
            jobs = [(builder.add_file(path, new_source(content)), len(content)) for path, content in files.items()]
            with pytest.raises(UnsupportedError, match=TOO_MANY):
                sorted(jobs, key=lambda item: builder.turn(*item))
            assert builder.bytes_coded == 0
    with CheckpointBuilder(new_sink()) as builder:
        job = builder.add_file(b"model.safetensors", new_source(data))
        with pytest.raises(UnsupportedError, match=TOO_MANY):
            builder.update(job, len(data))
        assert builder.bytes_coded == 0


def test_what_may_fit_is_counted_and_what_was_withdrawn_is_not(
    new_source: New, new_sink: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound that is quick to compute is no reason to refuse anything."""
    data = big()
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"model.safetensors", new_source(data))
        layout = job.look(len(data), True)
        need = capacity._counted(job, layout)
    limits = Limits(metadata_bytes=need.nbytes + 100)
    assert capacity._at_most(job, layout).nbytes > limits.metadata_bytes
    monkeypatch.setattr("arzstream.archive.builder.IndexRoom", functools.partial(IndexRoom, limits))
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        for name in (b"step-1.safetensors", b"step-2.safetensors"):
            job = builder.add_file(name, new_source(data))
            builder.update(job, len(data), final=True)
            if name.startswith(b"step-1"):
                builder.withdraw(job)
        builder.finish(job, size=len(data), mode=0o644, mtime=1)
        builder.seal()
    assert [record.path for _, record in open_directory(sink).files] == [b"step-2.safetensors"]


@pytest.mark.parametrize("limits", [Limits(metadata_bytes=4000), Limits(metadata_items=400)])
def test_the_writer_seals_nothing_that_readers_refuse(limits: Limits, new_sink: New) -> None:
    sink = new_sink()
    writer = FrameWriter(sink, limits=limits)
    for number in range(40):
        writer.add_file(FileRecord(b"file-%d" % number))
    writer.commit("")
    before = sink.size
    with pytest.raises(UnsupportedError, match=TOO_MANY):
        writer.seal([])
    assert sink.size == before


def test_a_quarter_of_a_million_large_tensors_fit_and_a_million_do_not() -> None:
    """What ARZ-1 section 10 says: the least and the most that a unit takes, with a short and with a long name."""
    limits = Limits()
    for name, refs, nbytes in (
        ("a.1.w", 0, 168),
        ("module.decoder.layers.60.mlp.experts.383.down_proj.weight", 2, 255),
    ):
        storage = Storage("BF16", 1 << 40, 7168 * 2048 * 2, (View(name, (7168, 2048)),))
        unit = storage_unit(storage, ".".join(name.split(".")[:4])).unit
        entry = listed(dataclasses.replace(unit, refs=tuple(Reference(1, n, 12, unit.elements) for n in range(refs))))
        assert abs(len(metadata.pack(entry)) - nbytes) < 8
        fit = min(
            limits.metadata_bytes // len(metadata.pack(entry)), limits.metadata_items // metadata.count_items(entry)
        )
        assert 250_000 < fit < limits.units
