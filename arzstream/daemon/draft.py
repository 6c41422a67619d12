"""The archive of one checkpoint while it grows under a temporary name: its builder, and what it is coded against."""

from __future__ import annotations

import threading
from collections.abc import Callable

from arzstream.archive.builder import CheckpointBuilder
from arzstream.container.scan import Replay
from arzstream.daemon import publish
from arzstream.daemon.destination import Destination, Growing
from arzstream.daemon.handover import Shared
from arzstream.daemon.parentage import Choice, Parentage
from arzstream.daemon.script import Script
from arzstream.formats.beside import NOTHING, Beside
from arzstream.store.ranges import DistantReader

__all__ = ["Draft"]

PROBE_BYTES = 32 << 20
"""Source bytes after which it is looked at whether coding against a parent pays."""


class Draft:
    """Used by one thread of a job at a time. ``folder_mode`` is that of folders that have to be made; ``beside`` are
    the files of the checkpoint, ``expected`` about how many bytes they will have; 0 if nobody knows."""

    def __init__(
        self, shared: Shared, dest: Destination, source: str, folder_mode: int, choice: Choice,
        beside: Beside = NOTHING, expected: int = 0,
    ) -> None:  # fmt: skip
        self.parentage = Parentage(choice, shared.in_use)
        self.builder: CheckpointBuilder | None = None
        self.others: set[int] = set()
        """Threads that were there before the builder had its own."""
        self._shared, self._dest, self._source, self._folder_mode = shared, dest, source, folder_mode
        self._beside, self._expected = beside, expected
        self._growing: Growing | None = None
        self._replay: Replay | None = None

    def open(self, path: bytes) -> CheckpointBuilder:
        """Begin, unless that was done; ``path`` is the checkpoint's."""
        name = publish.archive_name(path, self._source)
        if self.builder is None:
            self._growing = self._dest.new(name, self._folder_mode, self._expected)
            script, settings = self._growing.script, self._shared.settings
            if script.parent is not None:
                self.parentage.prefer(script.parent)
            self.others = {t.native_id or 0 for t in threading.enumerate()}
            # One thread while somebody writes: the second core is theirs.
            lineage = self.parentage.open(self._growing.place)
            script.coded_against(self.parentage.place)
            self.builder = CheckpointBuilder(
                self._growing.sink, profile=settings.profile, jobs=1, memory_bytes=self._shared.memory_bytes,
                lineage=lineage, beside=self._beside, file_id=script.file_id(),
            )  # fmt: skip
        self.script.called(name)
        return self.builder

    @property
    def script(self) -> Script:
        """How it was coded in an earlier life, and how it is; only while it is open."""
        assert self._growing is not None
        return self._growing.script

    def prove(self) -> None:
        """Decode what was written since the last call, and look at its frames, as readers do; where it can be read
        before it is complete."""
        reader = self._growing.reader if self._growing is not None else None
        if self._growing is None or self.builder is None or reader is None:
            return
        self.builder.verify_written(reader)
        if self._replay is None:
            self._replay = Replay(reader)
        for _ in self._replay.run(reader.size):
            pass  # each frame is checked as it comes by
        self._growing.start_writeback()

    def complete(self) -> None:
        """It is sealed: decode all that was not decoded yet, as the destination gives it back."""
        assert self._growing is not None and self.builder is not None
        reader = self._growing.complete()
        announced = reader.announce() if isinstance(reader, DistantReader) else None
        try:
            if announced is not None:
                announced.add([(0, reader.size)])
            self.builder.verify_written(reader)
        finally:
            if announced is not None:
                announced.release()

    def pays(self, *, complete: bool = False) -> bool:
        """False if coding against the parent saves too little to be worth it; it is not taken again."""
        builder, parentage = self.builder, self.parentage
        if builder is None or parentage.judged or not (complete or builder.bytes_coded >= PROBE_BYTES):
            return True
        return parentage.pays(builder.state)

    def check(self, files: dict[bytes, tuple[int, int]]) -> None:
        """The last look at what was sealed, once it is durable: it holds ``files``, by path: (size, mtime in ns), and
        nothing that it needs is missing."""
        assert self._growing is not None
        # Durable first: what is checked below must be what a power cut leaves.
        self._growing.sync()
        reader = self._growing.complete()
        publish.check(reader, files, self._replay)
        self.parentage.check(reader, self._growing.place)

    def publish(self, path: bytes, mode: int, content: bytes, check_going: Callable[[], None]) -> str:
        """Make it visible; its name, relative to the destination. Raises TakenError if another daemon has archived the
        same ``content``, and what ``check_going`` raises when a name was refused."""
        assert self._growing is not None
        name = publish.make_visible(self._growing, self._dest, path, self._source, mode, content, check_going)
        self._growing = None
        return name

    def close(self, *, park: bool = False) -> None:
        """Remove what was not published; or leave there what can be gone on with, to ``park`` it. It may be opened
        again, and is empty then."""
        if self.builder is not None:
            self.builder.close()
        self.parentage.close()
        if self._growing is not None:
            if park:
                self._growing.park()
            else:
                self._growing.abort()
        self.builder = self._growing = self._replay = None
