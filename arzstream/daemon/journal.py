"""What the daemon remembers: SQLite in write-ahead mode, in ``DEST/.arzstream/journal.db``.

The journal is a memory, not the truth. The truth is what lies in source and destination, so a journal that is
lost or damaged costs some looking and nothing else: a damaged one is put aside, a new one is begun, and archives
that are there already are recognised by what they hold.

Commits are not fsynced one by one (``synchronous=NORMAL``): a power cut may lose the last few, never the order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any

from arzstream.daemon.states import NEXT, State
from arzstream.errors import StorageError, UnsupportedError
from arzstream.store import local
from arzstream.store.address import redacted

__all__ = ["FOLDER", "Archive", "Entry", "Journal", "StateError"]

FOLDER = ".arzstream"
NAME = "journal.db"
VERSION = 2
_ADDED = (
    "ALTER TABLE checkpoints ADD COLUMN parent TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE checkpoints ADD COLUMN note TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE archives ADD COLUMN retired REAL NOT NULL DEFAULT 0",
)
"""What version 2 has more than version 1."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE checkpoints (
    path BLOB PRIMARY KEY,          -- relative to the source, parts separated by /
    state TEXT NOT NULL,
    since REAL NOT NULL,            -- seconds since 1970, when the state was entered
    seen REAL NOT NULL,             -- when it was first noticed
    waiting TEXT NOT NULL,          -- what it waits for, one line
    reason TEXT NOT NULL,           -- why it is blocked; else empty
    attempts INTEGER NOT NULL,      -- failed ones since the last success
    retry REAL NOT NULL,            -- when to try again; 0: not blocked
    strength TEXT NOT NULL,         -- how sure its end is: strong, good, weak
    bytes_in INTEGER NOT NULL,      -- of the source, as far as it is there
    bytes_coded INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    layers INTEGER NOT NULL,        -- layers committed
    early REAL NOT NULL,            -- fraction of the bytes coded before the last one was written
    latency REAL,                   -- seconds from the last byte written to the archive visible
    archive TEXT NOT NULL,          -- of the last publication, relative to the destination; else empty
    identity TEXT NOT NULL,         -- of the source as last published, JSON
    parent TEXT NOT NULL,           -- the archive that it is coded against; else empty
    note TEXT NOT NULL              -- what was wrong with parents; else empty
) WITHOUT ROWID;
CREATE TABLE archives (
    name TEXT PRIMARY KEY,          -- relative to the destination
    path BLOB NOT NULL,             -- of the checkpoint
    published REAL NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    content TEXT NOT NULL,          -- content digest, hexadecimal
    parent TEXT NOT NULL,           -- name of the archive it was coded against; else empty
    identity TEXT NOT NULL,
    retired REAL NOT NULL           -- when its removal was decided; 0: it stays
) WITHOUT ROWID;
"""


class StateError(Exception):
    """A state was to follow another that it may not follow: a bug in the daemon."""


@dataclasses.dataclass
class Entry:
    """One watched checkpoint; see the columns of ``checkpoints``."""

    path: bytes
    state: State = State.SEEN
    since: float = 0.0
    seen: float = 0.0
    waiting: str = ""
    reason: str = ""
    attempts: int = 0
    retry: float = 0.0
    strength: str = ""
    bytes_in: int = 0
    bytes_coded: int = 0
    bytes_out: int = 0
    layers: int = 0
    early: float = 0.0
    latency: float | None = None
    archive: str = ""
    identity: str = ""
    parent: str = ""
    note: str = ""

    def move(self, state: State, *, now: float | None = None, waiting: str = "") -> bool:
        """Go to ``state``; True if that is a change. :class:`StateError` if it may not follow."""
        self.waiting = waiting
        if state is self.state:
            return False
        if state not in NEXT[self.state]:
            raise StateError(f"{os.fsdecode(self.path)}: {state.value} cannot follow {self.state.value}")
        self.state, self.since = state, time.time() if now is None else now
        if state is not State.BLOCKED:
            self.reason, self.retry = "", 0.0
        return True


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published archive; see the columns of ``archives``."""

    name: str
    path: bytes
    published: float
    bytes_in: int
    bytes_out: int
    content: str
    parent: str = ""
    identity: str = ""
    retired: float = 0.0


_COLUMNS = [field.name for field in dataclasses.fields(Entry)]
_ARCHIVE_COLUMNS = [field.name for field in dataclasses.fields(Archive)]


class Journal:
    """Opened for writing by the one daemon that holds the destination's lock, and for reading by anyone."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        connection.text_factory = _text
        self._connection = connection
        self.path = path

    @classmethod
    def open(cls, dest: str) -> Journal:
        """Open or create the journal of a destination. A damaged one is put aside as ``journal.db.damaged-N``."""
        folder = os.path.join(dest, FOLDER)
        local.make_folders(folder)
        path = os.path.join(folder, NAME)
        for _ in range(2):
            try:
                return cls(cls._connect(path), path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                    raise StorageError(
                        f"{path}: cannot open the journal: {error}; check disk and permissions"
                    ) from error
                cls._put_aside(path)
        raise StorageError(f"{path}: cannot open the journal, and not begin a new one; remove the folder {folder}")

    @classmethod
    def read(cls, dest: str, shown: str = "") -> Journal:
        """Open the journal read-only, whether a daemon is running or not. ``shown`` is the destination, where the
        journal lies elsewhere."""
        path = os.path.join(dest, FOLDER, NAME)
        if not os.path.exists(path):
            place = redacted(shown or dest)
            raise StorageError(f"{place}: no daemon has worked here yet; start one with arzstream watch SOURCE {place}")
        address = "file:" + _quoted(path)
        for query in ("?mode=ro", "?mode=ro&immutable=1"):  # the second where the folder cannot be written to
            try:
                connection = sqlite3.connect(address + query, uri=True, timeout=5, isolation_level=None)
                connection.execute("SELECT count(*) FROM meta").fetchone()
            except sqlite3.Error as error:
                failure = error
                continue
            journal = cls(connection, path)
            journal._check_version()
            return journal
        raise StorageError(f"{path}: cannot read the journal: {failure}; check the permissions")

    @staticmethod
    def _connect(path: str) -> sqlite3.Connection:
        # Used by the daemon's main thread only, which is not always the one that opened it.
        connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=200")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('schema', ?)", (str(VERSION),))
                connection.execute("COMMIT")
            elif not {"meta", "checkpoints", "archives"} <= tables:
                raise sqlite3.DatabaseError("tables are missing")
            Journal(connection, path)._check_version()
            Journal._bring_up_to_date(connection)
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise sqlite3.DatabaseError(problem)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_version(self) -> None:
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        if row is None or not row[0].isdigit():
            raise sqlite3.DatabaseError("no schema version")
        if int(row[0]) > VERSION:
            raise UnsupportedError(
                f"{self.path}: written by a newer arzstream (journal version {row[0]}); use that one"
            )

    @staticmethod
    def _bring_up_to_date(connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",):
            connection.execute("BEGIN IMMEDIATE")
            for statement in _ADDED:
                connection.execute(statement)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(VERSION),))
            connection.execute("COMMIT")

    @staticmethod
    def _put_aside(path: str) -> None:
        number = 1
        while os.path.lexists(f"{path}.damaged-{number}"):
            number += 1
        for suffix in ("-wal", "-shm"):
            local.unlink(path + suffix)
        local.publish(path, f"{path}.damaged-{number}")

    # ------------------------------------------------------------------------------------------------ entries

    def entries(self) -> dict[bytes, Entry]:
        """All checkpoints, by path."""
        entries = (Entry(**row) for row in self._named("checkpoints", _COLUMNS, "path"))
        return {e.path: dataclasses.replace(e, path=bytes(e.path), state=State(e.state)) for e in entries}

    def put(self, entry: Entry) -> None:
        """Remember ``entry``, replacing what was remembered of its path."""
        with self._writing():
            self._insert("checkpoints", [getattr(entry, column) for column in _COLUMNS])

    def rename(self, old: bytes, entry: Entry) -> None:
        """The checkpoint at ``old`` is now ``entry``."""
        with self._writing():
            self._connection.execute("DELETE FROM checkpoints WHERE path = ?", (old,))
        self.put(entry)

    def forget(self, path: bytes) -> None:
        """Remove a checkpoint of which nothing was published."""
        with self._writing():
            self._connection.execute("DELETE FROM checkpoints WHERE path = ?", (path,))

    def archives(self) -> dict[str, Archive]:
        """All published archives, by name."""
        found = (Archive(**row) for row in self._named("archives", _ARCHIVE_COLUMNS, "published"))
        return {a.name: dataclasses.replace(a, path=bytes(a.path)) for a in found}

    def add_archive(self, archive: Archive, entry: Entry) -> None:
        """Remember a publication, and with it the checkpoint's entry, in one transaction."""
        with self._together():
            self._put_archive(archive)
            self.put(entry)

    def put_archives(self, archives: Iterable[Archive]) -> None:
        """Remember all of ``archives``, or none of them."""
        with self._together():
            for archive in archives:
                self._put_archive(archive)

    def remove_archives(self, names: Iterable[str], entries: Iterable[Entry]) -> None:
        """Archives are gone; remember that, and what became of their checkpoints, in one transaction."""
        with self._together():
            self._connection.executemany(
                "DELETE FROM archives WHERE name = CAST(? AS TEXT)", [(_bytes(name),) for name in names]
            )
            for entry in entries:
                self.put(entry)

    def _put_archive(self, archive: Archive) -> None:
        self._insert("archives", [getattr(archive, column) for column in _ARCHIVE_COLUMNS])

    # ------------------------------------------------------------------------------------------------ the daemon itself

    def set_meta(self, **values: Any) -> None:
        """Remember facts about the daemon (JSON values)."""
        with self._writing():
            self._connection.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in values.items()]
            )

    def meta(self) -> dict[str, Any]:
        """Facts about the daemon, without the schema's version."""
        return {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM meta") if key != "schema"}

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _insert(self, table: str, values: list[Any]) -> None:
        """Names that are not UTF-8 are text with surrogates, which SQLite takes as bytes only."""
        marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, str) else "?" for value in values)
        plain = [_bytes(value) if isinstance(value, str) else value for value in values]
        self._connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", plain)

    def _named(self, table: str, columns: list[str], order: str) -> Iterator[dict[str, Any]]:
        """Rows by column. A journal that an older version wrote, and only a daemon may change, lacks some columns."""
        there = {name for _, name, *_ in self._rows(f"PRAGMA table_info({table})")}
        read = [column for column in columns if column in there]
        for row in self._rows(f"SELECT {', '.join(read)} FROM {table} ORDER BY {order}"):
            yield dict(zip(read, row, strict=True))

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: cannot read the journal: {error}") from error

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """One transaction."""
        with self._writing():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: cannot write the journal: {error}; is the disk full?") from error


def _bytes(text: str) -> bytes:
    return str(text.value if isinstance(text, State) else text).encode("utf-8", "surrogateescape")


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(os.path.abspath(path)))
