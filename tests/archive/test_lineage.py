"""Archives coded against others: what they refer to, how parents are found, what is read without them."""

from __future__ import annotations

import collections
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import arzstream
from arzstream.archive import pack, pipeline
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.decoding import Decoder
from arzstream.archive.lineage import Lineage, open_lineage
from arzstream.archive.pipeline import Pipeline
from arzstream.archive.rebase import rebase
from arzstream.archive.references import MOST_TILES, TileCache
from arzstream.archive.sets import write_set
from arzstream.codec import best, registry
from arzstream.codec.base import ChunkContext
from arzstream.container.directory import UnitEntry
from arzstream.container.layout import FrameType
from arzstream.container.records import ReferenceKind
from arzstream.errors import StorageError
from arzstream.testing import forge
from arzstream.testing.xor import Xor

Tensors = dict[str, torch.Tensor]
Step = Callable[..., Path]


@pytest.fixture(autouse=True)
def xor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks that refer to something are coded with the test's codec."""
    registry._codecs[Xor.id] = Xor()

    def encode(data: memoryview, ctx: ChunkContext, profile: str = "balanced") -> tuple[int, Any]:
        if not len(ctx.references):
            return best.encode_best(data, ctx, profile)
        return Xor.id, Xor().encode(data, ctx)

    monkeypatch.setattr(pipeline, "encode_best", encode)
    yield
    del registry._codecs[Xor.id]


def model(seed: int, **changes: torch.Tensor | None) -> Tensors:
    """A model whose weights move a little with ``seed``; the frozen ones never do."""
    base, moved = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in {
        "embed.weight": (600, 64), "layers.0.w": (1200, 1000), "layers.0.norm": (64,), "layers.0.bias": (1000,),
        "layers.1.w": (300, 200), "frozen.w": (400, 300), "frozen.norm": (32,),
    }.items():  # fmt: skip
        value = torch.randn(shape, generator=base)
        noise = torch.randn(shape, generator=moved) * 1e-3
        tensors[name] = (value if "frozen" in name else value + noise).bfloat16()
    tensors.update({name: tensor for name, tensor in changes.items() if tensor is not None})
    return {name: tensor for name, tensor in tensors.items() if not (name in changes and changes[name] is None)}


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """Pack step N of a run, by default against step N − 1."""

    def pack(number: int, tensors: Tensors | None = None, parent: Path | None = None, **options: Any) -> Path:
        folder = tmp_path / "run" / f"step-{number}"
        folder.mkdir(parents=True)
        save_file(tensors or model(number), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        archive = tmp_path / "archive" / f"step-{number}.arz"
        archive.parent.mkdir(exist_ok=True)
        before = archive.with_name(f"step-{number - 1}.arz")
        arzstream.pack(folder, archive, parent=parent or (before if before.exists() else None), **options)
        return archive

    return pack


def same(archive: Path, tensors: Tensors, **options: Any) -> None:
    with arzstream.open(archive, **options) as opened:
        assert set(opened.keys()) == set(tensors)
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in tensors.items())
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in opened.stream())


def codecs(archive: Path) -> dict[str, str]:
    from arzstream.cli.listing import listing

    with arzstream.open(archive) as opened:
        return {tensor["name"]: tensor["codec"] for tensor in listing(opened)["tensors"]}


def kinds(archive: Path, name: str) -> list[int]:
    with arzstream.open(archive) as opened:
        return [ref.kind for ref in opened.catalog.find(name).entry.unit.refs]


def test_a_child_reads_like_any_archive_in_every_way(step: Step, tmp_path: Path) -> None:
    step(1)
    child = step(2)
    tensors = model(2)
    same(child, tensors)
    with arzstream.open(child, jobs=1) as opened:
        for name, tensor in tensors.items():
            assert torch.equal(opened.get_slice(name)[3:17], tensor[3:17])
        assert torch.equal(opened.get_slice("layers.0.w")[700:1101, 13:900], tensors["layers.0.w"][700:1101, 13:900])
        original = tmp_path / "run" / "step-2" / "model.safetensors"
        assert opened.read_file("model.safetensors") == original.read_bytes()
        with opened.open_file("model.safetensors") as file:
            file.seek(777_777)
            assert file.read(99) == original.read_bytes()[777_777:][:99]
    arzstream.unpack(child, tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == original.read_bytes()
    assert arzstream.verify(child, deep=True, against=tmp_path / "run" / "step-2").tensors == len(tensors)


def test_changed_tensors_are_coded_against_the_parent_and_unchanged_ones_cost_bytes(step: Step) -> None:
    alone = step(1)
    child = step(2)
    found = codecs(child)
    assert found["layers.0.w"] == found["embed.weight"] == found["layers.1.w"] == "xor-test"
    assert found["frozen.w"] == "unchanged"
    with arzstream.open(child) as opened:
        assert opened.parents() == [("step-1.arz", arzstream.open(alone).content_digest())]
    again = step(3, tensors=model(2))
    assert set(codecs(again).values()) == {"unchanged"}
    assert again.stat().st_size < 8192
    same(again, model(2))


def test_small_tensors_that_share_a_unit_refer_to_those_of_the_parent_however_it_groups_them(step: Step) -> None:
    extra = {f"layers.0.a{i}": torch.full((8,), float(i)).bfloat16() for i in range(5)}
    step(1, {**extra, **model(1)})
    child = step(2)
    assert codecs(child)["layers.0.norm"] == codecs(child)["layers.0.bias"] == "xor-test"
    assert codecs(child)["frozen.norm"] == "unchanged"
    same(child, model(2))


def test_new_tensors_and_those_of_another_type_or_width_are_coded_alone(step: Step) -> None:
    step(1)
    tensors = model(
        2,
        **{
            "layers.0.w": torch.randn(1200, 1000),
            "layers.1.w": torch.randn(300, 201).bfloat16(),
            "head.weight": torch.randn(300, 200).bfloat16(),
        },
    )
    child = step(2, tensors)
    assert [kinds(child, name) for name in ("layers.0.w", "layers.1.w", "head.weight")] == [[], [], []]
    assert kinds(child, "embed.weight") == [ReferenceKind.PARENT]
    same(child, tensors)


@pytest.mark.parametrize("rows", [650, 500])
def test_an_embedding_with_more_or_fewer_rows_refers_to_those_in_common(step: Step, rows: int) -> None:
    alone = step(1)
    changed = torch.randn(rows, 64).bfloat16()
    common = min(rows, 600)
    changed[:common] = model(1)["embed.weight"][:common]
    changed[0, 0] += 1
    child = step(2, model(2, **{"embed.weight": changed}))
    assert kinds(child, "embed.weight") == [ReferenceKind.PARENT]
    same(child, model(2, **{"embed.weight": changed}))
    with arzstream.open(child) as opened, arzstream.open(alone) as parent:
        entry = opened.catalog.find("embed.weight").entry
        (tile,) = opened.decoder.references(entry.unit, 0)
        old = model(1)["embed.weight"][:common].view(torch.uint8).numpy().tobytes()
        assert bytes(tile) == old + bytes((rows - common) * 128)  # 0 where the parent has nothing
        assert entry.stored < 0.5 * parent.catalog.find("embed.weight").entry.stored


def test_the_second_reference_is_the_parents_parent(step: Step) -> None:
    for number in (1, 2, 3):
        child = step(number)
    assert kinds(child, "layers.0.w") == [ReferenceKind.PARENT] * 2
    with arzstream.open(child) as opened:
        assert [hint for hint, _ in opened.parents()] == ["step-2.arz", "step-1.arz"]
    same(child, model(3))


def test_a_chain_ends_after_as_many_archives_as_were_asked_for(step: Step) -> None:
    depths = []
    for number in range(8):
        with arzstream.open(step(number, max_chain=2)) as opened:
            depths.append(len(opened.parents()))
    assert depths == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="max_chain"):
        step(9, max_chain=-1)


def test_with_two_references_each_a_long_chain_is_decoded_link_by_link(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [{"w": torch.full((256, 256), float(i)).bfloat16() + torch.randn(256, 256)} for i in range(20)]
    for number in range(20):
        child = step(number, tensors[number], max_chain=64)
    decoded = []
    original = Xor.decode
    monkeypatch.setattr(Xor, "decode", lambda self, *args: (decoded.append(1), original(self, *args))[1])
    with arzstream.open(child) as opened:
        assert torch.equal(opened.get_tensor("w"), tensors[19]["w"])
    assert len(decoded) == 19


def _training(number: int) -> Tensors:
    """Weights, and master weights and moments that are coded against each other."""
    found: Tensors = {}
    for i in range(3):
        generator = torch.Generator().manual_seed(100 * number + i)
        for name in ("m.", "v.", "master."):
            found[f"{name}layers.{i}.w"] = torch.randn((256, 256) if i else (1024, 640), generator=generator)
        found[f"layers.{i}.other"] = torch.randn(256, 256, generator=generator).bfloat16()
        found[f"layers.{i}.norm"] = torch.randn(32, generator=generator).bfloat16()
    return found


@pytest.mark.parametrize("jobs", [1, 4])
def test_an_ancestors_chunk_is_decoded_once_to_pack_and_once_to_unpack_a_long_chain(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """And once in the archive itself, where chunks are too large to be unpacked together with their neighbours."""
    decoded: collections.Counter[tuple[str, int, int, int]] = collections.Counter()
    chunk_into = Decoder.chunk_into

    def counted(self: Decoder, entry: UnitEntry, chunk: int, out: memoryview) -> None:
        decoded[Path(self.reader.name).name, entry.number, chunk, len(out)] += 1
        chunk_into(self, entry, chunk, out)

    for number in range(6):
        step(number, _training(number), jobs=jobs)
    monkeypatch.setattr(Decoder, "chunk_into", counted)
    child = step(6, _training(6), jobs=jobs)
    assert {name for name, *_ in decoded} == {f"step-{i}.arz" for i in range(6)}
    assert set(decoded.values()) == {1}
    decoded.clear()
    arzstream.unpack(child, tmp_path / "back")
    assert {name for name, *_ in decoded} == {f"step-{i}.arz" for i in range(7)}
    own = {length: count for (name, _, _, length), count in decoded.items() if name == "step-6.arz"}
    assert own[1024 * 640 * 4] == 1 and max(own.values()) <= 2
    assert {count for (name, *_), count in decoded.items() if name != "step-6.arz"} == {1}
    same(child, _training(6))


def test_what_does_not_decode_to_its_source_is_kept_plainly(
    step: Step, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A codec that is wrong must not keep a checkpoint from being archived."""
    step(1)
    encode = Xor.encode
    monkeypatch.setattr(Xor, "encode", lambda self, data, ctx: encode(self, bytes(len(data)), ctx))
    same(step(2), model(2))
    assert "does not decode to its source (other bytes): it is kept plainly" in caplog.text
    caplog.clear()
    monkeypatch.setattr(Xor, "decode", lambda self, payload, out, ctx: _refuse())
    same(step(3), model(3))
    assert "does not decode to its source (it is odd): it is kept plainly" in caplog.text


def test_nothing_is_packed_where_not_even_plain_bytes_come_back(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    step(1)
    monkeypatch.setattr(Pipeline, "_wrong", lambda *_: "other bytes")
    with pytest.raises(arzstream.CorruptError, match="does not decode to its source; the memory may be bad"):
        step(2)


def _refuse() -> None:
    raise arzstream.CorruptError("it is odd")


def test_chunks_are_cut_another_way_than_the_parents(step: Step) -> None:
    step(1)
    child = step(2, tensor_parallel=4)
    same(child, model(2))
    same(step(3), model(3))
    step(4, tensor_parallel=8)
    same(step(5, tensors=model(4)), model(4))


def test_tensors_of_one_name_in_several_files_refer_to_the_file_of_that_path(tmp_path: Path) -> None:
    def run(number: int) -> tuple[Path, dict[str, torch.Tensor]]:
        folder, held = tmp_path / f"step-{number}", {}
        for rank in range(3):
            (folder / f"rank{rank}").mkdir(parents=True)
            held[f"rank{rank}/shard.safetensors"] = torch.full((200, 300), 1.0 + rank) + number * 2.0**-20
            save_file({"w": held[f"rank{rank}/shard.safetensors"]}, folder / f"rank{rank}" / "shard.safetensors")
        arzstream.pack(folder, tmp_path / f"{number}.arz", parent=tmp_path / f"{number - 1}.arz" if number else None)
        return tmp_path / f"{number}.arz", held

    run(0)
    archive, held = run(1)
    with arzstream.open(archive) as opened:
        for path, tensor in held.items():
            place = opened.catalog.find(f"{path}:w")
            assert [opened.directory.files[ref.start][1].path.decode() for ref in place.entry.unit.refs] == [path]
            assert torch.equal(opened.get_tensor(f"{path}:w"), tensor)


def test_tied_tensors_that_change_are_stored_once_and_torch_files_refer_too(tmp_path: Path) -> None:
    for number in range(2):
        weight = torch.randn(300, 300) if number else torch.ones(300, 300)
        state = {"a": weight, "b": weight.clone(), "b2": weight.clone(), "t": weight.t(), "kept": torch.ones(90_000)}
        torch.save(state, tmp_path / f"{number}.pt")
        before = tmp_path / "0.arz" if number else None
        arzstream.pack(tmp_path / f"{number}.pt", tmp_path / f"{number}.arz", parent=before)
    assert sorted(codecs(tmp_path / "1.arz").values()) == ["dup", "unchanged", *["xor-test"] * 3]
    arzstream.verify(tmp_path / "1.arz", deep=True, against=tmp_path / "1.pt")


def test_units_that_were_the_parents_are_coded_when_their_source_changes(
    step: Step, new_source: Any, new_sink: Any
) -> None:
    parent = step(1)
    data = (parent.parent.parent / "run" / "step-1" / "model.safetensors").read_bytes()
    source, sink = new_source(data), new_sink()
    with (
        open_lineage(parent, str(parent.with_name("child.arz"))) as lineage,
        CheckpointBuilder(sink, lineage=lineage) as builder,
    ):
        job = builder.add_file(b"model.safetensors", source)
        builder.update(job, len(data), final=True)
        source.data[-5] ^= 1  # in the last tensor of the file
        builder.finish(job, size=len(data), mode=0o644, mtime=0)
        builder.verify_written(sink)
        summary = builder.seal()
    child = parent.with_name("child.arz")
    child.write_bytes(bytes(sink.data))
    assert summary.codecs["unchanged"] > 1 and len(summary.codecs) == 2
    with arzstream.open(child) as opened:
        assert opened.read_file("model.safetensors") == bytes(source.data)
    arzstream.verify(child, deep=True)


def test_a_growing_archive_that_has_a_parent_is_read_while_it_grows(step: Step) -> None:
    step(1)
    child = step(2)
    whole = child.read_bytes()
    growing = child.with_name("growing.arz")
    end = next(frame.end for frame in forge.frames(whole) if frame.kind == FrameType.COMMIT)
    growing.write_bytes(whole[: end + 64])
    with arzstream.open(growing) as opened:
        assert not opened.sealed and opened.keys()
        for name in opened.keys():  # noqa: SIM118
            assert torch.equal(opened.get_tensor(name), model(2)[name])


# -- finding parents


def test_parents_are_opened_only_when_a_tensor_needs_them(step: Step) -> None:
    parent = step(1)
    child = step(2, {**model(2), "alone.w": torch.ones(300, 300)})
    parent.rename(parent.with_suffix(".gone"))
    with arzstream.open(child) as opened:
        assert torch.equal(opened.get_tensor("alone.w"), torch.ones(300, 300))
        assert opened.read_file("config.json") == b"{}"
        for name in ("layers.0.w", "frozen.w"):
            with pytest.raises(arzstream.MissingParentError) as caught:
                opened.get_tensor(name)
            message = str(caught.value)
            assert message.startswith(f"{child}: tensor '{name}': it was coded against 'step-1.arz' (content ")
            assert str(parent.parent) in message and "--parents" in message
        parent.with_suffix(".gone").rename(parent)
        assert torch.equal(opened.get_tensor("frozen.w"), model(2)["frozen.w"])  # brought while it is open
    arzstream.verify(child)


def test_a_parent_that_is_missing_far_back_is_named_with_the_archive_that_lacks_it(step: Step) -> None:
    archives = [step(number) for number in range(4)]
    archives[0].unlink()
    with arzstream.open(archives[3]) as opened, pytest.raises(arzstream.MissingParentError) as caught:
        opened.get_tensor("frozen.w")
    wanted = f"{archives[3]}: tensor 'frozen.w': {archives[1]} was coded against 'step-0.arz' (content "
    assert str(caught.value).startswith(wanted) and str(caught.value).count("tensor") == 1


def test_checkpoints_that_hold_the_same_need_the_first_of_them_and_never_themselves(step: Step) -> None:
    archives = [step(number, model(1)) for number in range(3)]
    for archive in archives:
        same(archive, model(1))
    assert all(archive.stat().st_size < 8192 for archive in archives[1:])
    archives[1].unlink()
    same(archives[2], model(1))
    same(step(3, model(3), parent=archives[2]), model(3))
    content = arzstream.open(archives[0]).content_digest() or ""
    archives[0].unlink()
    with pytest.raises(arzstream.MissingParentError, match=content[:12]):
        same(archives[2], model(1))


def test_a_checkpoint_that_came_back_to_an_earlier_one_is_coded_against_that(step: Step) -> None:
    seeds = [1, 2, 3, 1, 2, 3, 1]
    archives = [step(number, model(seed)) for number, seed in enumerate(seeds)]
    for archive, seed in zip(archives, seeds, strict=True):
        same(archive, model(seed))
    assert [hint for hint, _ in arzstream.open(archives[3]).parents()] == ["step-0.arz"]
    assert archives[3].stat().st_size < 8192


def test_what_came_back_to_an_earlier_checkpoint_does_not_go_through_a_pipe_coded_against_what_needs_that(
    step: Step, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    first, _, last = (step(number) for number in range(3))
    with pytest.raises(arzstream.StorageError, match=f"pack it with --parent {first}") as caught:
        arzstream.pack(tmp_path / "run" / "step-0", "-", parent=last)
    assert "standard output: " in str(caught.value) and caught.value.exit_code == 4
    sent = first.with_name("sent.arz")
    sent.write_bytes(capfdbinary.readouterr().out)
    with arzstream.open(sent) as opened:
        assert not opened.sealed
    first.rename(tmp_path / "elsewhere.arz")
    with pytest.raises(arzstream.MissingParentError, match=r"coded against 'step-0\.arz'"):
        same(last, model(2))
    (tmp_path / "elsewhere.arz").rename(first)
    arzstream.pack(tmp_path / "run" / "step-0", "-", parent=first)
    sent.write_bytes(capfdbinary.readouterr().out)
    same(sent, model(0))


@pytest.mark.parametrize("references", [1, 2])
def test_an_archive_that_would_need_itself_is_not_taken_for_what_it_holds(
    step: Step, monkeypatch: pytest.MonkeyPatch, references: int
) -> None:
    """The fourth holds the same as the first, and was coded against the third all the same."""
    monkeypatch.setattr(Lineage, "twin", lambda self, content: None)
    monkeypatch.setitem(pack.REFERENCES, "balanced", references)
    seeds = (1, 2, 3, 1)
    archives = [step(number, model(seed)) for number, seed in enumerate(seeds)]
    for archive, seed in zip(archives, seeds, strict=True):
        same(archive, model(seed))
    gone = archives[0].rename(archives[0].with_suffix(".gone"))
    for archive in archives[1:]:
        with arzstream.open(archive) as opened, pytest.raises(arzstream.MissingParentError) as caught:
            opened.get_tensor("layers.0.w")
        assert "holds the same, but cannot be read without it; put it" in str(caught.value)
        assert len(str(caught.value)) < 800 and str(caught.value).count("tensor") == 1
    gone.rename(archives[0])
    for archive, seed in zip(archives, seeds, strict=True):
        same(archive, model(seed))


def test_parents_are_found_by_content_whatever_they_are_called(step: Step, tmp_path: Path) -> None:
    parent, elsewhere = step(1), tmp_path / "elsewhere"
    child = step(2)
    elsewhere.mkdir()
    shutil.copy(child, elsewhere / "child.arz")
    with pytest.raises(arzstream.MissingParentError):
        same(elsewhere / "child.arz", model(2))
    for search in (parent.parent, [tmp_path, parent.parent], parent, f"file://{parent.parent}"):
        same(elsewhere / "child.arz", model(2), parents=search)
    parent.rename(elsewhere / "any name.arz")
    (elsewhere / "broken.arz").write_bytes(b"\x89ARZ")
    same(elsewhere / "child.arz", model(2))
    assert arzstream.unpack(elsewhere / "child.arz", tmp_path / "out", parents=tmp_path)


def test_another_archive_under_the_parents_name_is_not_taken_for_it(step: Step) -> None:
    parent = step(1)
    child = step(2)
    arzstream.pack(parent.parent.parent / "run" / "step-2", parent, force=True)
    with pytest.raises(arzstream.MissingParentError, match=r"step-1\.arz is another one"):
        same(child, model(2))


def test_a_parent_that_was_packed_again_in_another_way_still_serves(step: Step) -> None:
    parent = step(1)
    child = step(2)
    arzstream.pack(parent.parent.parent / "run" / "step-1", parent, force=True, profile="fast", tensor_parallel=2)
    same(child, model(2))


def test_parents_behind_a_url_are_found(step: Step) -> None:
    import fsspec

    step(1)
    child = step(2)
    memory = fsspec.filesystem("memory")
    for place in child.parent.iterdir():
        memory.pipe(f"/lineage/{place.name}", place.read_bytes())
    same("memory://lineage/step-2.arz", model(2))  # type: ignore[arg-type]
    memory.mv("/lineage/step-1.arz", "/lineage/renamed.arz")
    same("memory://lineage/step-2.arz", model(2))  # type: ignore[arg-type]
    memory.rm("/lineage", recursive=True)


def test_a_parent_that_is_damaged_is_named(step: Step) -> None:
    parent = step(1)
    child = step(2)
    data = bytearray(parent.read_bytes())
    with arzstream.open(parent) as opened:
        place = opened.directory.chunk_table(opened.catalog.find("layers.0.w").entry.number)[0]
    data[int(place["offset"]) + 200] ^= 1
    parent.write_bytes(data)
    with arzstream.open(child) as opened:
        with pytest.raises(arzstream.CorruptError, match=r"step-2\.arz: .*step-1\.arz: tensor 'layers\.0\.w', chunk 0"):
            opened.get_tensor("layers.0.w")
        assert torch.equal(opened.get_tensor("frozen.w"), model(2)["frozen.w"])


def test_an_archive_whose_index_lies_about_its_content_is_no_parent(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arzstream.container import state

    parent = step(1)
    child = step(2)
    digest = bytes.fromhex(arzstream.open(parent).content_digest() or "")
    monkeypatch.setattr(state, "content_digest", lambda *args: digest)
    arzstream.pack(parent.parent.parent / "run" / "step-2", parent, force=True)
    monkeypatch.undo()
    with pytest.raises(arzstream.MissingParentError):
        same(child, model(2))


# -- packing


def test_an_archive_is_not_replaced_by_one_that_needs_it(step: Step) -> None:
    first, second = step(1), step(2)
    before = first.read_bytes()
    for dest in (first, second):
        with pytest.raises(arzstream.StorageError, match="is needed to read what would take its place"):
            arzstream.pack(first.parent.parent / "run" / "step-1", dest, parent=second, force=True)
    assert first.read_bytes() == before


def test_packing_against_a_parent_whose_own_parent_is_gone_says_so(step: Step) -> None:
    first = step(1)
    step(2)
    first.unlink()
    with pytest.raises(arzstream.MissingParentError, match=r"'step-1\.arz'"):
        step(3)


def test_reproducible_archives_depend_on_the_parent(step: Step, tmp_path: Path) -> None:
    first, source = step(1), tmp_path / "run" / "step-1"
    for name in ("a", "b"):
        arzstream.pack(source, tmp_path / f"{name}.arz", parent=first, reproducible=True)
    arzstream.pack(source, tmp_path / "c.arz", reproducible=True)
    assert (tmp_path / "a.arz").read_bytes() == (tmp_path / "b.arz").read_bytes()
    with arzstream.open(tmp_path / "a.arz") as a, arzstream.open(tmp_path / "c.arz") as c:
        assert a.directory.prologue.file_id != c.directory.prologue.file_id
        assert a.content_digest() == c.content_digest()


def test_a_set_is_a_parent_and_its_volumes_have_parents(step: Step, tmp_path: Path) -> None:
    first = step(1)
    volume = step(2)
    write_set(volume.with_name("set.arz"), [volume])
    same(volume.with_name("set.arz"), model(2))
    child = step(3, parent=volume.with_name("set.arz"))
    assert kinds(child, "layers.0.w") == [ReferenceKind.PARENT] * 2
    same(child, model(3))
    arzstream.verify(child, deep=True)
    first.unlink()
    with pytest.raises(arzstream.MissingParentError, match=r"'step-1\.arz'"):
        same(volume.with_name("set.arz"), model(2))


# -- what a hostile archive may make us do


def test_references_that_lead_too_deep_or_too_wide_are_refused() -> None:
    cache = TileCache(64)

    def deep(level: int) -> Callable[[np.ndarray], None]:
        return lambda tile: cache.get((level,), 1, deep(level + 1)) and None

    with pytest.raises(arzstream.LimitError, match="through more than 64"):
        cache.get((0,), 1, deep(1))

    def wide(tile: np.ndarray) -> None:
        for key in range(MOST_TILES + 1):
            cache.get(("wide", key), 1, lambda tile: None)

    with pytest.raises(arzstream.LimitError, match="tiles in all"):
        cache.get(("top",), 1, wide)


def test_a_chain_longer_than_the_limit_is_refused(step: Step) -> None:
    for number in range(4):
        child = step(number, {"w": torch.randn(300, 200)})
    with arzstream.open(child, limits=arzstream.Limits(parent_depth=3)) as opened:
        opened.get_tensor("w")
    with (
        arzstream.open(child, limits=arzstream.Limits(parent_depth=2)) as opened,
        pytest.raises(arzstream.LimitError, match="through more than 2") as caught,
    ):
        opened.get_tensor("w")
    assert str(caught.value) == f"{child}: tensor 'w', chunk 0: references lead through more than 2 others"


def test_the_hint_leads_nowhere_but_to_archives(step: Step, tmp_path: Path) -> None:
    from arzstream.archive.ancestry import Ancestry
    from arzstream.container.records import Parent

    child = step(1)
    os.mkfifo(child.with_name("pipe.arz"))
    for hint in ("/etc/passwd", "../../etc/passwd", "http://host/x.arz", "pipe.arz", "a\x1b[31m.arz", "x\0.arz"):
        with pytest.raises(arzstream.MissingParentError) as caught:
            Ancestry().find(Parent(bytes(32), hint), str(child))
        assert str(caught.value).isprintable()


# -- recovery


def _without_its_end(archive: Path) -> Path:
    """The archive with the chunk of ``layers.1.w`` damaged, and no index."""
    with arzstream.open(archive) as opened:
        place = opened.directory.chunk_table(opened.catalog.find("layers.1.w").entry.number)[0]
    data = bytearray(archive.read_bytes()[:-300])
    data[int(place["offset"]) + 150] ^= 8
    damaged = archive.with_name("damaged.arz")
    damaged.write_bytes(data)
    return damaged


def test_recover_saves_what_was_coded_against_a_parent(step: Step, tmp_path: Path) -> None:
    step(1)
    damaged = _without_its_end(step(2))
    report = arzstream.recover(damaged, tmp_path / "rescued.arz")
    assert (report.lost_tensors, report.unchecked) == (["layers.1.w"], [])
    whole = {name: tensor for name, tensor in model(2).items() if name != "layers.1.w"}
    same(tmp_path / "rescued.arz", whole)
    with arzstream.open(tmp_path / "rescued.arz") as opened:
        assert opened.parents()[0][0] == "archive/step-1.arz"


def test_without_the_parent_recover_keeps_what_its_file_needs_and_says_that_it_is_unchecked(
    step: Step, tmp_path: Path
) -> None:
    parent, child = step(1), step(2)
    data = bytearray(child.read_bytes())
    with arzstream.open(child) as opened:
        alone = [n for n in opened.keys() if not opened.catalog.find(n).entry.unit.refs]  # noqa: SIM118
        assert not alone
    child.write_bytes(data[:-1])
    parent.rename(tmp_path / "away.arz")
    report = arzstream.recover(child, tmp_path / "rescued.arz")
    assert sorted(report.unchecked) == sorted(model(2)) and report.complete
    same(tmp_path / "rescued.arz", model(2))  # found beside it, by content
    damaged = _without_its_end_of(child, data)
    report = arzstream.recover(damaged, tmp_path / "less.arz")
    assert set(report.lost_tensors) == set(model(2)) and report.files == ["config.json"]
    again = arzstream.recover(damaged, tmp_path / "more.arz", parents=tmp_path, force=True)
    assert again.lost_tensors == ["layers.1.w"]


def _damaged(archive: Path, tensor: str) -> bytes:
    """The first chunk of ``tensor`` is damaged in place; what the archive was."""
    with arzstream.open(archive) as opened:
        place = opened.directory.chunk_table(opened.catalog.find(tensor).entry.number)[0]
    data = archive.read_bytes()
    at = int(place["offset"]) + 200
    archive.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    return data


def test_a_parent_that_is_damaged_loses_recover_nothing(step: Step, tmp_path: Path) -> None:
    """What cannot be checked for that is kept as it is stored; and it is said which archive is damaged, how far back it
    may be."""
    archives = [step(number) for number in range(1, 4)]
    whole = _damaged(archives[0], "layers.0.w"), _damaged(archives[1], "layers.1.w")
    report = arzstream.recover(archives[2], tmp_path / "archive" / "rescued.arz")
    assert report.complete and report.damaged_places == 0
    assert sorted(report.unchecked) == ["layers.0.w", "layers.1.w"]
    assert len(report.parent_problems) == 2
    assert any(f"{archives[0]}: tensor 'layers.0.w', chunk 0: the stored" in said for said in report.parent_problems)
    assert any(f"{archives[1]}: tensor 'layers.1.w', chunk 0: the stored" in said for said in report.parent_problems)
    for archive, data in zip(archives, whole, strict=False):
        archive.write_bytes(data)
    same(tmp_path / "archive" / "rescued.arz", model(3))
    assert not arzstream.recover(tmp_path / "archive" / "rescued.arz", tmp_path / "again.arz").parent_problems


@pytest.mark.parametrize("name", ["step-1.arz", "step-2.arz"])
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO])
def test_recover_takes_no_trouble_with_the_storage_for_damage(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    from arzstream.store.ranges import LocalReader

    step(1)
    child = step(2)
    read_into = LocalReader.read_into

    def fail(self: LocalReader, offset: int, buffer: memoryview) -> None:
        if self.name.endswith(name) and len(buffer) > 100_000:
            raise StorageError(f"{self.name}: cannot read it; try again later", errno=number)
        read_into(self, offset, buffer)

    monkeypatch.setattr(LocalReader, "read_into", fail)
    if number == errno.EIO and name == "step-1.arz":  # it will not pass, so it is damage: of the parent
        report = arzstream.recover(child, tmp_path / "rescued.arz")
        assert report.complete and "layers.0.w" in report.unchecked
        return
    with pytest.raises(StorageError, match=f"{name}: cannot read it"):
        arzstream.recover(child, tmp_path / "rescued.arz")
    assert not (tmp_path / "rescued.arz").exists()


def _without_its_end_of(child: Path, data: bytearray) -> Path:
    child.write_bytes(data)
    return _without_its_end(child)


# -- rebase


def test_rebase_makes_an_archive_stand_alone_and_its_children_still_find_it(step: Step) -> None:
    first, second = step(1), step(2)
    third = step(3)
    before = arzstream.open(second).content_digest()
    summary = rebase(second)
    assert summary.parents == [] and summary.content == before and summary.bytes_in > summary.bytes_out / 2
    first_bytes = first.read_bytes()
    first.unlink()
    same(second, model(2))
    arzstream.verify(second, deep=True, against=second.parent.parent / "run" / "step-2")
    with pytest.raises(arzstream.MissingParentError):
        same(third, model(3))  # its second reference
    first.write_bytes(first_bytes)
    same(third, model(3))


def test_rebase_to_another_parent(step: Step, tmp_path: Path) -> None:
    step(1)
    step(2)
    third = step(3)
    other = arzstream.pack(tmp_path / "run" / "step-1", tmp_path / "archive" / "other.arz").archive
    summary = rebase(third, tmp_path / "archive" / "new.arz", parent=other)
    assert [hint for hint, _ in summary.parents] == ["other.arz"]
    assert summary.codecs["unchanged"] == 2
    for name in ("step-1", "step-2"):
        (tmp_path / "archive" / f"{name}.arz").unlink()
    same(tmp_path / "archive" / "new.arz", model(3))
    arzstream.verify(tmp_path / "archive" / "new.arz", deep=True, against=tmp_path / "run" / "step-3")
    with pytest.raises(arzstream.StorageError, match="exists already"):
        rebase(third, other)


def test_rebase_never_makes_two_archives_need_each_other(step: Step, tmp_path: Path) -> None:
    first, second = step(1), step(2)
    before = {path: path.read_bytes() for path in (first, second)}
    for parent in (first, second):
        for dest in (None, tmp_path / "archive" / "new.arz"):
            with pytest.raises(arzstream.StorageError, match=r"is or needs what would be coded against it"):
                rebase(first, dest, parent=parent)
    assert {path: path.read_bytes() for path in (first, second)} == before
    assert not list(first.parent.glob(".arz-tmp-*"))


def test_rebase_of_a_damaged_archive_changes_nothing(step: Step) -> None:
    step(1)
    second = step(2)
    with arzstream.open(second) as opened:
        place = opened.directory.chunk_table(opened.catalog.find("layers.0.w").entry.number)[0]
    data = bytearray(second.read_bytes())
    data[int(place["offset"]) + 150] ^= 8
    second.write_bytes(data)
    with pytest.raises(arzstream.CorruptError, match=r"step-2\.arz: tensor 'layers\.0\.w', chunk 0"):
        rebase(second)
    assert second.read_bytes() == data and not list(second.parent.glob(".arz-tmp-*"))


def test_rebase_keeps_files_links_views_and_ties(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "empty").mkdir(parents=True)
    weight = torch.randn(300, 300)
    torch.save({"a": weight, "t": weight.t(), "b": weight.clone(), "c": weight.clone()}, folder / "state.pt")
    (folder / "notes.txt").write_bytes(os.urandom(100_000))
    (folder / "link").symlink_to("notes.txt")
    arzstream.pack(folder, tmp_path / "0.arz", tensor_parallel=2)
    arzstream.pack(folder, tmp_path / "1.arz", parent=tmp_path / "0.arz")
    for dest in ("2.arz", None):
        summary = rebase(tmp_path / "1.arz", dest and tmp_path / dest)
        assert "unchanged" not in summary.codecs and summary.codecs["dup"] == 1
        (tmp_path / "0.arz").unlink(missing_ok=True) if dest is None else None
        arzstream.verify(tmp_path / (dest or "1.arz"), deep=True, against=folder)
