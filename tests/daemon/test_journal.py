"""The journal remembers what it is told, allows only what the states allow, and survives being damaged or lost."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from arzstream.daemon.journal import FOLDER, Archive, Entry, Journal, StateError
from arzstream.daemon.states import NEXT, State
from arzstream.errors import StorageError, UnsupportedError

DATABASE = os.path.join(FOLDER, "journal.db")


class JournalMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, a fresh look at the file shows what a dictionary would."""

    paths = Bundle("paths")

    @initialize()
    def begin(self) -> None:
        self.dest = tempfile.mkdtemp()
        self.journal = Journal.open(self.dest)
        self.entries: dict[bytes, Entry] = {}
        self.archives: dict[str, Archive] = {}

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.dest)

    @rule(target=paths, path=st.binary(min_size=1, max_size=8))
    def see(self, path: bytes) -> bytes:
        if path not in self.entries:
            self.entries[path] = Entry(path, seen=1.0)
            self.journal.put(self.entries[path])
        return path

    @rule(path=paths, state=st.sampled_from(State), attempts=st.integers(0, 9), waiting=st.text(max_size=5))
    def move(self, path: bytes, state: State, attempts: int, waiting: str) -> None:
        entry = self.entries.get(path)
        if entry is None:
            return
        before = entry.state
        if state is not before and state not in NEXT[before]:
            with pytest.raises(StateError):
                entry.move(state)
            assert entry.state is before
            entry.waiting = ""
        else:
            assert entry.move(state, now=7.0, waiting=waiting) == (state is not before)
            entry.attempts = attempts
            if state is State.BLOCKED:
                entry.reason, entry.retry = "disk full", 9.5
        self.journal.put(entry)

    @rule(path=paths, number=st.integers(1, 3))
    def publish(self, path: bytes, number: int) -> None:
        entry = self.entries.get(path)
        if entry is None or entry.state is not State.VERIFYING:
            return
        entry.move(State.PUBLISHED, now=8.0)
        entry.latency, entry.archive = 0.25, f"{os.fsdecode(path)}.{number}.arz"
        archive = Archive(entry.archive, path, 8.0, 10, 7, "ab" * 32, identity='{"a": 1}')
        self.archives[archive.name] = archive
        self.journal.add_archive(archive, entry)

    @rule(removed=st.booleans(), which=st.integers(0, 9))
    def retire(self, removed: bool, which: int) -> None:
        """First what is to go is marked, then it is gone, with what became of its checkpoint; or it stays."""
        if not self.archives:
            return
        archive = sorted(self.archives.values(), key=lambda a: a.name)[which % len(self.archives)]
        self.archives[archive.name] = marked = dataclasses.replace(archive, retired=9.0)
        self.journal.put_archives([marked])
        if not removed:
            return
        del self.archives[archive.name]
        entry = self.entries.get(archive.path)
        if entry is not None and entry.state is State.PUBLISHED:
            entry.move(State.RETIRED, now=9.0)
            entry.archive = ""
        self.journal.remove_archives([archive.name], [entry] if entry is not None else [])

    @rule(path=paths)
    def forget(self, path: bytes) -> None:
        if self.entries.pop(path, None) is not None:
            self.journal.forget(path)

    @rule(old=paths, new=st.binary(min_size=1, max_size=8))
    def rename(self, old: bytes, new: bytes) -> None:
        entry = self.entries.get(old)
        if entry is None or new in self.entries:
            return
        del self.entries[old]
        entry.path = new
        self.entries[new] = entry
        self.journal.rename(old, entry)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.dest)

    @rule()
    def killed(self) -> None:
        """The process is gone without closing anything; the next one finds the files as they are."""
        copy = tempfile.mkdtemp()
        shutil.copytree(os.path.join(self.dest, FOLDER), os.path.join(copy, FOLDER))
        self.journal.close()
        shutil.rmtree(self.dest)
        self.dest, self.journal = copy, Journal.open(copy)

    @invariant()
    def a_reader_sees_what_was_written(self) -> None:
        if not hasattr(self, "journal"):
            return
        with Journal.read(self.dest) as reader:
            assert reader.entries() == self.entries
            assert reader.archives() == self.archives


JournalMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJournal = JournalMachine.TestCase


def test_every_state_but_the_ends_leads_to_publication():
    """No state is a trap: from anywhere a checkpoint can still be published."""
    for start in State:
        reached, todo = set(), [start]
        while todo:
            state = todo.pop()
            for following in NEXT[state] - reached:
                reached.add(following)
                todo.append(following)
        assert State.PUBLISHED in reached, start


def test_nothing_is_published_without_being_verified_or_recognised():
    assert {state for state in State if State.PUBLISHED in NEXT[state]} == {State.SEEN, State.VERIFYING}


@pytest.mark.parametrize("damage", ["garbage", "half", "zeros", "flipped", "empty", "other"])
def test_a_damaged_journal_is_put_aside_and_a_new_one_begun(tmp_path, damage):
    with Journal.open(str(tmp_path)) as journal:
        for number in range(200):
            journal.put(Entry(b"step-%d" % number, waiting="x" * 100))
    path = tmp_path / DATABASE
    data = path.read_bytes()
    if damage == "other":
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE something (x)")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(
            {
                "garbage": b"not a database at all" * 100,
                "half": data[: len(data) // 2],
                "zeros": data[:100] + bytes(len(data) - 100),
                "flipped": data[:20] + bytes(b ^ 0xFF for b in data[20:200]) + data[200:],
                "empty": b"",
            }[damage]
        )
    with Journal.open(str(tmp_path)) as journal:
        assert journal.entries() == {}
        journal.put(Entry(b"new"))
    aside = [name for name in os.listdir(tmp_path / FOLDER) if "damaged" in name]
    assert len(aside) == (damage != "empty")


def test_a_newer_journal_is_not_touched(tmp_path):
    Journal.open(str(tmp_path)).close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    connection.commit()
    connection.close()
    for way in (Journal.open, Journal.read):
        with pytest.raises(UnsupportedError, match="newer arzstream"):
            way(str(tmp_path))


def test_reading_needs_no_daemon_and_writes_nothing(tmp_path):
    with pytest.raises(StorageError, match="no daemon has worked here"):
        Journal.read(str(tmp_path))
    with Journal.open(str(tmp_path)) as journal:
        journal.put(Entry(b"a"))
        journal.set_meta(pid=1, paused=False)
    with Journal.read(str(tmp_path)) as reader:
        assert list(reader.entries()) == [b"a"] and reader.meta() == {"pid": 1, "paused": False}
        with pytest.raises(StorageError):
            reader.put(Entry(b"b"))


def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path):
    journal = Journal.open(str(tmp_path))
    journal._connection.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StorageError, match="disk full"):
        for number in range(10_000):
            journal.put(Entry(b"%d" % number, waiting="x" * 200))
    assert journal.entries()
    journal.close()


def test_a_journal_of_the_version_before_is_read_and_brought_up_to_date(tmp_path):
    entry = Entry(b"step-1", State.PUBLISHED, archive="step-1.arz", identity="x")
    archive = Archive("step-1.arz", b"step-1", 8.0, 10, 7, "ab" * 32)
    with Journal.open(str(tmp_path)) as journal:
        journal.add_archive(archive, entry)
    connection = sqlite3.connect(tmp_path / DATABASE)
    for table, *added in (("checkpoints", "parent", "note"), ("archives", "retired")):
        columns = [row[1:4] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] not in added]
        defined = ", ".join(f"{name} {kind} {'NOT NULL' if required else ''}" for name, kind, required in columns)
        connection.execute(f"CREATE TABLE old ({defined}, PRIMARY KEY ({columns[0][0]})) WITHOUT ROWID")
        connection.execute(f"INSERT INTO old SELECT {', '.join(column[0] for column in columns)} FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE old RENAME TO {table}")
    connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    connection.commit()
    connection.close()
    with Journal.read(str(tmp_path)) as journal:  # nobody but a daemon changes it
        assert journal.entries() == {b"step-1": entry} and journal.archives() == {"step-1.arz": archive}
    with Journal.open(str(tmp_path)) as journal:
        entry.note = "noted"
        journal.put(entry)
        assert journal.entries() == {b"step-1": entry} and journal.archives() == {"step-1.arz": archive}
