"""Optimiser state: recognised, coded given the weights and itself, right whatever its sources do; and weights that are
read without a byte of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file

import arzstream
from arzstream.archive import builder as builder_module
from arzstream.archive import relations
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.rebase import rebase
from arzstream.codec.roles import Role
from arzstream.container.records import ReferenceKind
from arzstream.store.ranges import LocalReader

Tensors = dict[str, torch.Tensor]
New = Callable[..., Any]
SHAPES = {"embed.weight": (300, 256), "layers.0.a": (320, 256), "layers.0.b": (320, 256), "head.weight": (300, 256)}


class Training:
    """AdamW on noise, with norms without weight decay in a group of their own, as trainers do it."""

    def __init__(self, rate: float = 1e-3, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        torch.manual_seed(0)
        self.weights = {name: torch.nn.Parameter(0.02 * torch.randn(shape)) for name, shape in shapes.items()}
        self.weights["layers.0.norm"] = torch.nn.Parameter(torch.ones(256))
        groups = [
            {"params": [p for p in self.weights.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in self.weights.values() if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
        self.scale = {name: torch.exp(torch.randn(p.shape[0])) for name, p in self.weights.items()}

    def train(self, steps: int) -> Training:
        for _ in range(steps):
            for name, p in self.weights.items():
                noise = torch.randn(p.shape)
                p.grad = noise * self.scale[name].reshape(-1, *[1] * (p.dim() - 1)) * 1e-3
            self.optimizer.step()
        return self

    def halves(self) -> Tensors:
        return {name: p.detach().bfloat16() for name, p in self.weights.items()}

    def state(self) -> dict[str, Any]:
        master = {name: p.detach().clone() for name, p in self.weights.items()}
        return {"master": master, "optimizer": self.optimizer.state_dict()}

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        save_file(self.halves(), folder / "weights.safetensors")
        torch.save(self.state(), folder / "a_optimizer.pt")  # its name comes first
        return folder


def refs(archive: Path, name: str) -> list[str]:
    """Of the units of the same archive that a tensor may be coded against, the names."""
    with arzstream.open(archive) as opened:
        units = opened.directory.by_number
        found = opened.catalog.find(name).entry.unit.refs
        return [units[ref.source].unit.members[0].name or "" for ref in found if ref.kind == ReferenceKind.UNIT]


def codecs(archive: Path) -> dict[str, str]:
    from arzstream.cli.listing import listing

    with arzstream.open(archive) as opened:
        return {tensor["name"]: tensor["codec"] for tensor in listing(opened)["tensors"]}


def test_state_is_coded_given_the_weights_and_itself(tmp_path: Path) -> None:
    folder, archive = Training().train(5).save(tmp_path / "step"), tmp_path / "step.arz"
    arzstream.pack(folder, archive)
    for number, name in enumerate(SHAPES):
        state = f"optimizer.state.{number}"
        assert refs(archive, name) == refs(archive, f"{state}.exp_avg_sq") == []
        assert refs(archive, f"{state}.exp_avg") == [f"{state}.exp_avg_sq"]
        assert refs(archive, f"master.{name}") == [name, f"{state}.exp_avg", f"{state}.exp_avg_sq"]
        assert codecs(archive)[f"master.{name}"] == "optim_ctx"
    assert arzstream.verify(archive, deep=True, against=folder).tensors == 5 * 5
    arzstream.unpack(archive, tmp_path / "back")
    assert (tmp_path / "back" / "a_optimizer.pt").read_bytes() == (folder / "a_optimizer.pt").read_bytes()


def test_a_pair_takes_what_the_master_weights_alone_take(tmp_path: Path) -> None:
    """At most half a percent of the weights' size more."""
    shapes = dict.fromkeys(SHAPES, (1024, 512))
    training = Training(shapes=shapes).train(3)
    master = {f"master.{name}": tensor for name, tensor in training.state()["master"].items()}
    sizes = []
    for number, tensors in enumerate([master, {**training.halves(), **master}]):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        sizes.append(arzstream.pack(tmp_path / f"{number}.safetensors", tmp_path / f"{number}.arz").bytes_out)
    assert sizes[1] <= sizes[0] + 0.005 * 2 * 4 * 1024 * 512


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every read of an archive: its name, offset and length."""
    found: list[tuple[str, int, int]] = []
    read_at, read_into, tail = LocalReader.read_at, LocalReader.read_into, LocalReader.tail

    def at(self: LocalReader, offset: int, length: int) -> bytes:
        found.append((self.name, offset, length))
        return read_at(self, offset, length)

    def into(self: LocalReader, offset: int, buffer: memoryview) -> None:
        found.append((self.name, offset, len(buffer)))
        read_into(self, offset, buffer)

    def last(self: LocalReader, length: int) -> tuple[int, bytes]:
        size, data = tail(self, length)
        found.append((self.name, size - len(data), len(data)))
        return size, data

    monkeypatch.setattr(LocalReader, "read_at", at)
    monkeypatch.setattr(LocalReader, "read_into", into)
    monkeypatch.setattr(LocalReader, "tail", last)
    return found


def spans_of_state(archive: Path) -> list[tuple[int, int]]:
    """Where the chunks of what is no weight begin and end."""
    with arzstream.open(archive) as opened:
        spans = []
        for entry in opened.directory.units:
            if entry.unit.has_chunks and entry.unit.dtype == "F32":
                table = opened.directory.chunk_table(entry.number)
                spans += [(int(c["offset"]), int(c["offset"]) + int(c["stored"])) for c in table]
        return spans


def test_reading_weights_reads_no_byte_of_the_state(tmp_path: Path, reads: list[tuple[str, int, int]]) -> None:
    training, archives = Training(), []
    for number in range(3):
        folder = training.train(10).save(tmp_path / f"{number}")
        archives.append(tmp_path / f"{number}.arz")
        arzstream.pack(folder, archives[-1], parent=archives[-2] if number else None)
    state = {str(archive): spans_of_state(archive) for archive in archives}
    assert all(state.values())
    # The beginning of an archive and its end are read to open it, and may hold anything.
    sizes = {str(archive): archive.stat().st_size for archive in archives}
    reads.clear()
    with arzstream.open(archives[-1]) as opened:
        opened.get_tensor("layers.0.norm")
        begun = {name: [(o, n) for other, o, n in reads if other == name] for name, _, _ in reads}
        opened_reads = len(reads)
        for name, tensor in training.halves().items():
            assert torch.equal(opened.get_tensor(name), tensor)
    assert begun and sizes
    for name, offset, length in reads[opened_reads:]:
        assert (
            not any(start < offset + length and offset < end for start, end in state[name])
            or offset + length == (sizes[name])
        )
    assert any(name == str(archives[0]) for name, _, _ in reads), "the parents' weights were read"


def test_a_chain_reads_back(tmp_path: Path) -> None:
    training, before = Training(rate=1e-5), None
    for number in range(4):
        folder, archive = training.train(10).save(tmp_path / f"{number}"), tmp_path / f"{number}.arz"
        arzstream.pack(folder, archive, parent=before)
        before = archive
    assert set(codecs(archive).values()) <= {"optim_ctx", "delta_ctx", "float_ctx", "zstd", "unchanged", "const"}
    assert arzstream.verify(archive, deep=True, against=folder).tensors == 5 * 5
    with arzstream.open(archive, jobs=2) as opened:
        master = training.state()["master"]
        assert torch.equal(opened.get_slice("master.layers.0.a")[7:30], master["layers.0.a"][7:30])


def test_rebasing_keeps_what_state_is_coded_against(tmp_path: Path) -> None:
    training = Training()
    arzstream.pack(training.train(5).save(tmp_path / "1"), tmp_path / "1.arz")
    arzstream.pack(training.train(5).save(tmp_path / "2"), tmp_path / "2.arz", parent=tmp_path / "1.arz")
    rebase(tmp_path / "2.arz", tmp_path / "alone.arz")
    assert len(refs(tmp_path / "alone.arz", "master.layers.0.b")) == 3
    assert arzstream.verify(tmp_path / "alone.arz", deep=True, against=tmp_path / "2").tensors == 5 * 5


def test_wrong_state_costs_no_more_than_state_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State that is another weight's, halves that are others': right all the same, and hardly larger than alone."""
    training = Training().train(5)
    state, halves = training.state(), training.halves()
    swapped = zip(SHAPES, reversed(SHAPES), strict=True)
    state["master"].update({name: training.weights[other].detach().flip(0) for name, other in swapped})
    save_file({name: halves[name] for name in SHAPES}, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    sources = [tmp_path / "a.safetensors", tmp_path / "b.pt"]
    wrong = arzstream.pack(sources, tmp_path / "wrong.arz").bytes_out
    assert arzstream.verify(tmp_path / "wrong.arz", deep=True).tensors
    assert len(refs(tmp_path / "wrong.arz", "master.layers.0.a")) == 3
    monkeypatch.setattr(relations.Relations, "of", lambda *_: (Role.OTHER, ()))
    assert wrong < 1.001 * arzstream.pack(sources, tmp_path / "alone.arz").bytes_out


def finish(builder: CheckpointBuilder, job: Any, data: bytes) -> None:
    builder.finish(job, size=len(data), mode=0o644, mtime=0)


def named(training: Training) -> tuple[bytes, bytes]:
    """Weights, and state under plain names, as two files."""
    state: Tensors = {}
    for number, (name, weight) in enumerate(training.weights.items()):
        of = training.optimizer.state_dict()["state"][number]
        state[f"master.{name}"] = weight.detach().clone()
        state[f"exp_avg.{name}"], state[f"exp_avg_sq.{name}"] = of["exp_avg"], of["exp_avg_sq"]
    return safetensors_bytes(training.halves()), safetensors_bytes(state)


def checked(sink: Any, files: dict[str, bytes]) -> Any:
    archive = sink.archive()
    for name, data in files.items():
        assert archive.read_file(name) == data
    return archive


@pytest.mark.parametrize("state_first", [False, True])
def test_files_that_land_in_either_order(state_first: bool, new_source: New, new_sink: New) -> None:
    """What is not there yet is done without."""
    weights, state = named(Training().train(5))
    files = {b"s.safetensors": state, b"w.safetensors": weights}
    order = list(files) if state_first else list(files)[::-1]
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        jobs = {path: builder.add_file(path, new_source(files[path])) for path in order}
        for path in order:
            for frontier in range(0, len(files[path]) + 1, 200_000):
                builder.update(jobs[path], frontier)
            builder.verify_written(sink)
        for path in order:
            finish(builder, jobs[path], files[path])
        builder.verify_written(sink)
        builder.seal()
    archive = checked(sink, {path.decode(): data for path, data in files.items()})
    assert archive.catalog.find("layers.0.a").entry.unit.refs == ()
    assert bool(archive.catalog.find("master.layers.0.a").entry.unit.refs) or state_first


@pytest.mark.parametrize("changed", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("jobs", [1, 2])
def test_weights_and_state_may_be_rewritten(
    changed: tuple[bool, bool], jobs: int, new_source: New, new_sink: New
) -> None:
    """Also when what was coded against them is coded already."""
    both = named(Training().train(5))
    sources, sink = [new_source(data) for data in both], new_sink()
    with CheckpointBuilder(sink, jobs=jobs) as builder:
        files = [builder.add_file(b"%d.safetensors" % i, source) for i, source in enumerate(sources)]
        for job, source in zip(files, sources, strict=True):
            builder.update(job, source.size)
        for source, change in zip(sources, changed, strict=True):
            for at in range(20_000, source.size, 100_000) if change else ():
                source.data[at] ^= 1
        for job, source in zip(files, sources, strict=True):
            finish(builder, job, bytes(source.data))
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {f"{i}.safetensors": bytes(source.data) for i, source in enumerate(sources)})


def test_weights_that_change_while_state_is_coded_against_them(new_source: New, new_sink: New) -> None:
    """The archive holds the old weights, the source new ones: what is coded then does without."""
    weights, state = named(Training().train(5))
    source, sink = new_source(weights), new_sink()
    with CheckpointBuilder(sink, jobs=2) as builder:
        first = builder.add_file(b"w.safetensors", source)
        builder.update(first, len(weights))
        for at in range(20_000, len(weights), 100_000):
            source.data[at] ^= 1
        second = builder.add_file(b"s.safetensors", new_source(state))
        builder.update(second, len(state))
        builder.verify_written(sink)  # what is written decodes, now
        finish(builder, first, bytes(source.data))
        finish(builder, second, state)
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {"w.safetensors": bytes(source.data), "s.safetensors": state})


def test_weights_that_can_no_longer_be_read(new_source: New, new_sink: New) -> None:
    weights, state = named(Training().train(5))
    source, sink = new_source(weights), new_sink()

    def gone(offset: int, length: int) -> None:
        raise ValueError("read of closed file")

    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"w.safetensors", source)
        finish(builder, job, weights)
        source.before_read = gone
        job = builder.add_file(b"s.safetensors", new_source(state))
        finish(builder, job, state)
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {"w.safetensors": weights, "s.safetensors": state})


def test_units_are_coded_weights_first() -> None:
    tensors = {
        "exp_avg.a.w": torch.zeros(200, 200), "master.a.w": torch.zeros(200, 200), "a.w": torch.zeros(200, 200).half(),
        "exp_avg_sq.a.w": torch.zeros(200, 200), "exp_avg.small": torch.zeros(3),
    }  # fmt: skip
    data = safetensors_bytes(tensors)
    from arzstream.formats.safetensors import SafetensorsParser

    layout = SafetensorsParser().update(lambda offset, length: data[offset : offset + length], len(data), True)
    by_layer = {"x": list(layout.storages)}
    order = [s.views[0].name for _, units in builder_module._in_order(by_layer, 1) for _, found in units for s in found]
    assert set(order[:2]) == {"a.w", "exp_avg.small"}
    assert order[2:] == ["exp_avg_sq.a.w", "exp_avg.a.w", "master.a.w"]


def test_tensors_of_another_shape_or_type_are_no_relations(built: Callable[..., Any]) -> None:
    weights = {"a.w": torch.randn(200, 300).bfloat16(), "b.w": torch.randn(200, 200)}
    state = {"master.a.w": torch.randn(300, 200), "master.b.w": torch.randn(200, 200), "exp_avg.a.w": torch.randn(9, 9)}
    sink = built({b"w.safetensors": safetensors_bytes(weights), b"x.safetensors": safetensors_bytes(state)})
    archive = sink.archive()
    assert all(entry.unit.refs == () for entry in archive.directory.units)
    assert np.array_equal(archive.numpy("master.a.w"), state["master.a.w"].numpy())


# ---- transposed copies


def test_a_transposed_copy_costs_bytes(built: Callable[..., Any]) -> None:
    weight = torch.randn(3000, 700).bfloat16()  # three chunks one way, two the other
    tensors = {"a": weight, "b": weight.T.contiguous(), "c": torch.randn(700, 3000).bfloat16()}
    data = safetensors_bytes(tensors)
    sink, alone = (
        built({b"w.safetensors": data}),
        built({b"w.safetensors": safetensors_bytes({"a": weight, "c": tensors["c"]})}),
    )
    assert sink.size < alone.size + 1500
    archive = checked(sink, {"w.safetensors": data})
    assert [ref.kind for ref in archive.catalog.find("b").entry.unit.refs] == [ReferenceKind.TRANSPOSED]
    assert archive.catalog.find("c").entry.unit.refs == ()
    assert np.array_equal(
        archive.get_slice("b")[300:420, 17:2500].view(torch.int16), tensors["b"][300:420, 17:2500].view(torch.int16)
    )


def test_what_is_transposed_but_for_one_element_is_coded_as_if_it_were_not(built: Callable[..., Any]) -> None:
    weight = torch.randn(300, 300)
    other = weight.T.contiguous()
    other[200, 200] += 1
    sink = built({b"w.safetensors": safetensors_bytes({"a": weight, "b": other})})
    archive = checked(sink, {"w.safetensors": safetensors_bytes({"a": weight, "b": other})})
    assert archive.catalog.find("b").entry.unit.refs == ()


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_either_of_two_that_are_each_other_transposed_may_be_rewritten(
    which: tuple[int, ...], new_source: New, new_sink: New
) -> None:
    weight = torch.randn(1500, 900)  # two chunks
    both = [safetensors_bytes({"a": weight}), safetensors_bytes({"b": weight.T.contiguous()})]
    sources, sink = [new_source(data) for data in both], new_sink()
    with CheckpointBuilder(sink) as builder:
        files = [builder.add_file(b"%d.safetensors" % i, source) for i, source in enumerate(sources)]
        for job, source in zip(files, sources, strict=True):
            builder.update(job, source.size)
        builder.verify_written(sink)
        for i in which:
            sources[i].data[-7] ^= 1
        for job, source in zip(files, sources, strict=True):
            finish(builder, job, bytes(source.data))
        builder.verify_written(sink)
        builder.seal()
    checked(sink, {f"{i}.safetensors": bytes(source.data) for i, source in enumerate(sources)})


def test_tied_frozen_and_unchanged_tensors_cost_bytes(tmp_path: Path) -> None:
    """The same tensor under two names, in two files, and in the parent; state of weights that are not trained."""
    weight, frozen = torch.randn(600, 500).bfloat16(), torch.randn(400, 500).bfloat16()
    for number in (1, 2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        moved = weight + number * 0.01
        tied = {"embed.weight": moved, "head.weight": moved.clone(), "frozen.weight": frozen}
        save_file(tied, folder / "model.safetensors")
        torch.save({"moved": moved, "exp_avg.frozen": torch.zeros(400, 500)}, folder / "rest.pt")
        parent = tmp_path / "1.arz" if number == 2 else None
        size = arzstream.pack(folder, tmp_path / f"{number}.arz", parent=parent).bytes_out
    assert size < moved.nbytes * 0.8
    listed = codecs(tmp_path / "2.arz")
    assert listed["frozen.weight"] == "unchanged" and listed["head.weight"] == listed["moved"] == "dup"
    assert arzstream.verify(tmp_path / "2.arz", deep=True, against=tmp_path / "2").tensors


def test_what_other_optimisers_keep_is_coded_given_its_squares(tmp_path: Path) -> None:
    """Centred RMSprop with momentum: means of gradients, and steps, beside means of squares."""
    torch.manual_seed(1)
    p = torch.nn.Parameter(torch.randn(320, 256))
    optimizer = torch.optim.RMSprop([p], momentum=0.9, centered=True)
    scale = torch.exp(2 * torch.randn(320, 256))
    for _ in range(6):
        p.grad = torch.randn(p.shape) * scale
        optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    arzstream.pack(tmp_path / "a.pt", tmp_path / "a.arz")
    state = "optimizer.state.0"
    assert refs(tmp_path / "a.arz", f"{state}.grad_avg") == [f"{state}.square_avg"]
    assert codecs(tmp_path / "a.arz")[f"{state}.grad_avg"] == "optim_ctx"
    arzstream.unpack(tmp_path / "a.arz", tmp_path / "back")
    assert (tmp_path / "back" / "a.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()


def test_of_two_squares_the_one_that_tells_more_is_used(tmp_path: Path) -> None:
    """AMSGrad keeps the largest mean of squares beside the mean."""
    torch.manual_seed(1)
    p = torch.nn.Parameter(torch.randn(320, 256))
    optimizer = torch.optim.Adam([p], amsgrad=True)
    for _ in range(3):
        p.grad = torch.randn(p.shape)
        optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    arzstream.pack(tmp_path / "a.pt", tmp_path / "a.arz")
    assert refs(tmp_path / "a.arz", "optimizer.state.0.exp_avg") == ["optimizer.state.0.exp_avg_sq"]
