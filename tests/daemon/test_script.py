"""How an archive was coded in an earlier life is followed as far as it goes, and what is done then is remembered."""

from __future__ import annotations

from pathlib import Path

from arzstream.daemon.parentage import Choice, InUse, Parentage
from arzstream.daemon.script import SETTLE, Script, Turn
from arzstream.store.notes import Started, UploadNotes

A, B = Turn(b"a", 5), Turn(b"b\xff", 7)


def notes_at(path: Path) -> UploadNotes:
    notes = UploadNotes.claim(str(path))
    assert notes is not None
    if notes.started is None:
        notes.begin(Started("name", "upload"))
    return notes


def lived(path: Path, *turns: Turn) -> list[Turn]:
    """A life that does ``turns``; what the next one is told to do."""
    notes = notes_at(path)
    script = Script(notes)
    for turn in turns:
        script.take(turn)
    notes.keep()
    notes = notes_at(path)
    told, script = [], Script(notes)
    while script.next is not None:
        told.append(script.next)
        script.take(script.next)
    notes.keep()
    return told


def test_the_next_life_is_told_what_was_done_and_goes_on_from_there(tmp_path: Path) -> None:
    assert lived(tmp_path / "n", A, B, SETTLE) == [A, B, SETTLE]
    assert SETTLE.settles and not A.settles
    assert lived(tmp_path / "n", A, B, SETTLE, Turn(b"a", 9)) == [A, B, SETTLE, Turn(b"a", 9)]


def test_a_life_that_is_cut_short_forgets_nothing(tmp_path: Path) -> None:
    """Its upload has what the one before it sent."""
    lived(tmp_path / "n", A, B)
    assert lived(tmp_path / "n", A) == [A, B]
    assert lived(tmp_path / "n") == [A, B]


def test_what_is_done_in_another_order_replaces_the_rest(tmp_path: Path) -> None:
    lived(tmp_path / "n", A, B, SETTLE)
    assert lived(tmp_path / "n", A, Turn(b"a", 8)) == [A, Turn(b"a", 8)]
    notes = notes_at(tmp_path / "n")
    script = Script(notes)
    script.take(A)
    script.leave()
    assert script.next is None
    notes.keep()
    assert lived(tmp_path / "n") == [A]


def test_a_file_that_was_renamed_is_known_by_its_new_name(tmp_path: Path) -> None:
    notes = notes_at(tmp_path / "n")
    script = Script(notes)
    script.take(A)
    script.take(B)
    script.renamed(b"a", b"c")
    script.take(Turn(b"c", 9))
    notes.keep()
    assert lived(tmp_path / "n") == [Turn(b"c", 5), B, Turn(b"c", 9)]


def test_the_file_id_and_the_parent_are_those_of_the_earlier_life(tmp_path: Path) -> None:
    notes = notes_at(tmp_path / "n")
    script = Script(notes)
    assert script.parent is None
    first = script.file_id()
    assert first is not None and len(first) == 16 and script.file_id() == first
    script.coded_against("s3://b/step-1.arz")
    notes.keep()
    again = Script(notes_at(tmp_path / "n"))
    assert again.file_id() == first and again.parent == "s3://b/step-1.arz"


def test_without_notes_nothing_is_settled() -> None:
    script = Script()
    script.take(A)
    script.renamed(b"a", b"b")
    script.coded_against("x")
    script.leave()
    assert script.next is None and script.file_id() is None and script.parent is None


def test_what_makes_no_sense_in_notes_ends_the_script(tmp_path: Path) -> None:
    notes = notes_at(tmp_path / "n")
    for step in (["a", 5], ["a", "b", "c"], ["a", 6]):
        notes.add(step)
    notes.set(file_id="5")
    assert Script(notes).next == A
    assert lived(tmp_path / "m") == []
    assert len(Script(notes).file_id() or b"") == 16


def test_the_parent_of_the_earlier_life_is_asked_first() -> None:
    for place, candidates, base in (
        ("", [], ""),
        ("two", ["two", "one", "three"], "base"),
        ("other", ["other", "one", "two", "three"], "base"),
        ("base", [], "base"),
    ):
        parentage = Parentage(Choice(("one", "two", "three"), "base"), InUse())
        parentage.prefer(place)
        assert (parentage._candidates, parentage._base) == (candidates, base)
