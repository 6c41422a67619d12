"""The archive of one checkpoint while it is written: a temporary file, its builder, and what it is coded against."""

from __future__ import annotations

import contextlib
import os
import threading

from arzstream.archive.builder import CheckpointBuilder
from arzstream.container.scan import Replay
from arzstream.daemon import publish
from arzstream.daemon.handover import Shared
from arzstream.daemon.parentage import Choice, Parentage
from arzstream.errors import StorageError
from arzstream.formats.beside import NOTHING, Beside
from arzstream.store import local
from arzstream.store.ranges import LocalReader

__all__ = ["Draft"]

PROBE_BYTES = 32 << 20
"""Source bytes after which it is looked at whether coding against a parent pays."""


class Draft:
    """Used by one thread of a job at a time. ``folder_mode`` is that of folders that have to be made; ``beside`` are
    the files of the checkpoint."""

    def __init__(
        self, shared: Shared, dest: str, source: str, folder_mode: int, choice: Choice, beside: Beside = NOTHING
    ) -> None:
        self.parentage = Parentage(choice, shared.in_use)
        self.builder: CheckpointBuilder | None = None
        self.others: set[int] = set()
        """Threads that were there before the builder had its own."""
        self._shared, self._dest, self._source, self._folder_mode = shared, dest, source, folder_mode
        self._beside = beside
        self._temporary = ""
        self._sink: local.LocalSink | None = None
        self._reader: LocalReader | None = None
        self._replay: Replay | None = None

    def open(self, path: bytes) -> CheckpointBuilder:
        """Begin, unless that was done; ``path`` is the checkpoint's."""
        if self.builder is None:
            final = os.path.join(self._dest, publish.archive_name(path, self._source))
            local.make_folders(os.path.dirname(final), self._folder_mode)
            self._temporary = local.temporary_beside(final)
            self._sink = local.LocalSink(self._temporary)
            self._reader = LocalReader(self._temporary)
            settings = self._shared.settings
            self.others = {t.native_id or 0 for t in threading.enumerate()}
            # One thread while somebody writes: the second core is theirs.
            self.builder = CheckpointBuilder(
                self._sink, profile=settings.profile, jobs=1, memory_bytes=self._shared.memory_bytes,
                lineage=self.parentage.open(self._temporary), beside=self._beside,
            )  # fmt: skip
        return self.builder

    @property
    def reader(self) -> LocalReader:
        """What was written so far."""
        assert self._reader is not None
        return self._reader

    def prove(self) -> None:
        """Decode what was written since the last call, and look at its frames, as readers do."""
        if self.builder is None:
            return
        self.builder.verify_written(self.reader)
        if self._replay is None:
            self._replay = Replay(self.reader)
        for _ in self._replay.run(self.reader.size):
            pass  # each frame is checked as it comes by
        assert self._sink is not None
        self._sink.start_writeback()

    def pays(self, *, complete: bool = False) -> bool:
        """False if coding against the parent saves too little to be worth it; it is not taken again."""
        builder, parentage = self.builder, self.parentage
        if builder is None or parentage.judged or not (complete or builder.bytes_coded >= PROBE_BYTES):
            return True
        return parentage.pays(builder.state)

    def check(self, files: dict[bytes, tuple[int, int]]) -> None:
        """The last look at what was sealed, once it is durable: it holds ``files``, by path: (size, mtime in ns), and
        nothing that it needs is missing."""
        assert self._sink is not None
        # Durable first: what is checked below must be what a power cut leaves.
        self._sink.sync()
        publish.check(self.reader, files, self._replay)
        self.parentage.check(self.reader, self._temporary)

    def publish(self, path: bytes, mode: int) -> str:
        """Make it visible; its name, relative to the destination."""
        assert self._sink is not None
        self._sink.set_mode(mode)
        self._sink.close()
        name = publish.make_visible(self._temporary, self._dest, path, self._source)
        self._sink = None
        return name

    def close(self) -> None:
        """Remove what was not published. It may be opened again, and is empty then."""
        if self.builder is not None:
            self.builder.close()
        self.parentage.close()
        if self._reader is not None:
            self._reader.close()
        if self._sink is not None:
            with contextlib.suppress(StorageError):  # the next start sweeps what cannot be removed now
                self._sink.abort()
        self.builder = self._reader = self._sink = self._replay = None
