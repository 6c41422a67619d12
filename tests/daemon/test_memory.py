"""What the main loop remembers is written down as soon as that can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from arzstream.daemon.journal import Entry, Journal
from arzstream.daemon.memory import Memory
from arzstream.errors import StorageError


@pytest.mark.parametrize("what", ["rename", "forget"])
def test_what_was_renamed_or_forgotten_while_the_journal_could_not_be_written_is_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with Journal.open(str(tmp_path)) as journal:
        memory, entry = Memory(journal), Entry(b"staged")
        memory.entries[b"staged"] = entry
        memory.changed(entry)
        memory.flush()

        def failing(*_arguments: object) -> None:
            raise StorageError("made up")

        with monkeypatch.context() as broken:
            broken.setattr(journal, what, failing)
            if what == "rename":
                entry.path = b"final"
                memory.rename(b"staged", entry)
            else:
                memory.forget(b"staged")
        assert memory.behind and b"staged" in journal.entries()
        memory.flush(force=True)
        assert not memory.behind and list(journal.entries()) == list(memory.entries) == [b"final"] * (what == "rename")
