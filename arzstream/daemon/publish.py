"""Names of archives, what is in the destination already, and the last step: a proved archive becomes visible."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping

from arzstream.archive.verify import verify_reader
from arzstream.container.directory import open_directory
from arzstream.container.records import FileRecord
from arzstream.container.records import Kind as RecordKind
from arzstream.container.scan import Replay
from arzstream.daemon.census import Census
from arzstream.daemon.destination import Destination, Growing
from arzstream.daemon.scan import Item, Kind
from arzstream.errors import ArzError, CorruptError, StorageError
from arzstream.formats.checkpoint import is_temporary
from arzstream.store.ranges import RangeReader, open_reader

__all__ = ["TakenError", "archive_name", "check", "existing", "holds", "make_visible"]

SUFFIX = ".arz"
READ_BYTES = 8 << 20
MOST_NAMES = 8
"""So many are tried, one after the other, before it is tried again later."""


class TakenError(Exception):
    """Another daemon has archived it; ``name`` is the archive's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def archive_name(path: bytes, source: str, number: int = 1) -> str:
    """``<relative path>.arz``; ``….2.arz`` for the second archive. The source itself goes by its own name."""
    stem = os.fsdecode(path) or os.path.basename(os.path.abspath(source)) or "checkpoint"
    return f"{stem}{SUFFIX}" if number == 1 else f"{stem}.{number}{SUFFIX}"


def existing(dest: Destination, path: bytes, source: str, *, now: bool = False) -> list[str]:
    """Names of archives of this checkpoint that lie in the destination, newest number first. ``now``: at this moment,
    and not some seconds ago."""
    first = archive_name(path, source)
    folder, name = os.path.split(first)
    pattern = re.compile(re.escape(name[: -len(SUFFIX)]) + r"(?:\.(\d+))?" + re.escape(SUFFIX))
    names = dest.names_in(folder, now=now)
    found = [(int(match[1] or 1), match[0]) for match in map(pattern.fullmatch, names) if match]
    return [os.path.join(folder, match) for _, match in sorted(found, reverse=True)]


def holds(archive: str, members: Mapping[bytes, Item], checkpoint: bytes, *, census: Census, by_hash: bool) -> bool:
    """Is ``archive`` an archive of exactly these members: the same paths, sizes and times, and, ``by_hash``, content?
    Temporary files, which a crash may have left among them, are not archived, and do not count.

    ``by_hash`` reads the sources and compares SHA-256 instead of times. An archive that cannot be opened is not one.
    """
    try:
        with open_reader(archive) as reader:
            directory = open_directory(reader)
            if not directory.sealed:
                return False
            records = {r.path: r for _, r in directory.files if r.kind == RecordKind.REGULAR}
    except ArzError:
        return False
    prefix = len(checkpoint) + 1 if checkpoint else 0
    files: dict[bytes, bytes] = {}
    for path, item in members.items():
        inside = path[prefix:] or os.path.basename(path)
        if is_temporary(path):
            continue
        if item.kind is Kind.FILE or (item.kind is Kind.LINK and inside in records):
            files[inside] = path
    if files.keys() != records.keys():
        return False
    return all(_same(records[inside], census, path, members[path], by_hash) for inside, path in files.items())


def _same(record: FileRecord, census: Census, path: bytes, item: Item, by_hash: bool) -> bool:
    if item.kind is Kind.LINK:  # followed when it was archived; what it points to has times of its own
        try:
            status = os.stat(os.path.join(census.root, path))
        except OSError:
            return False
    else:
        status = item.status
    if record.size != status.st_size:
        return False
    if not by_hash:
        return record.mtime == status.st_mtime_ns
    target = os.path.realpath(os.path.join(census.root, path)) if item.kind is Kind.LINK else b""
    file = census.open_file(path, keep=True, target=target)
    try:
        digest = hashlib.sha256()
        with file.announced(0, record.size):
            for offset in range(0, record.size, READ_BYTES):
                digest.update(file.read_at(offset, min(READ_BYTES, record.size - offset)))
        return digest.digest() == record.sha256
    finally:
        file.close()


def check(reader: RangeReader, expected: Mapping[bytes, tuple[int, int]], replay: Replay | None) -> None:
    """The last look before an archive becomes visible: every header and stored byte that ``replay`` has not checked
    while it grew, the index against a scan of the frames, and that it holds exactly the ``expected`` files, by path:
    (size, mtime in ns)."""
    verify_reader(reader, replay=replay)
    directory = open_directory(reader)
    found = {r.path: (r.size, r.mtime) for _, r in directory.files if r.kind == RecordKind.REGULAR}
    if not directory.sealed or found != dict(expected):
        raise CorruptError(f"{reader.name}: does not hold the files it should; it is written again")


def make_visible(
    growing: Growing, dest: Destination, path: bytes, source: str, mode: int, content: bytes,
    check_going: Callable[[], None] = lambda: None,
) -> str:  # fmt: skip
    """Publish under the first free name; returns it, relative to the destination. Nothing is ever replaced.

    Raises :class:`TakenError` if another daemon has published an archive of the same ``content`` meanwhile,
    StorageError if one name after another is refused, and what ``check_going`` raises between them.
    """
    refused: list[str] = []
    while len(refused) < MOST_NAMES:
        taken = [*refused, *existing(dest, path, source, now=True)]
        if dest.remote:  # a local destination is locked
            same = next((name for name in taken if dest.content_of(name) == content), None)
            if same is not None:
                raise TakenError(same)
        name = archive_name(path, source, 1 + max((_number(name) for name in taken), default=0))
        try:
            growing.publish(name, mode)
        except StorageError as error:
            if error.errno != errno.EEXIST:
                raise
            refused.append(name)  # a listing need not show it yet
            check_going()
            continue
        return name
    said = f"{len(refused)} names were refused, the last of them {refused[-1]}, which no listing shows"
    raise StorageError(f"{dest.shown}: {said}; it is tried again", errno=errno.EAGAIN)


def _number(name: str) -> int:
    match = re.search(r"\.(\d+)" + re.escape(SUFFIX) + "$", name)
    return int(match[1]) if match else 1
