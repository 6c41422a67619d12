"""Following an archive that is being written."""

from __future__ import annotations

import time
from collections.abc import Iterator

from arzstream.container.layout import TRAILER_BYTES, FrameType
from arzstream.container.metadata import unpack
from arzstream.container.records import Commit
from arzstream.container.scan import Reader, Replay, plain_payload
from arzstream.errors import CorruptError, StorageError
from arzstream.limits import Limits

__all__ = ["commits"]

POLL_SECONDS = 0.1


def commits(reader: Reader, limits: Limits, timeout: float | None) -> Iterator[tuple[list[Commit], Replay]]:
    """Yield the COMMITs as they appear, those that are there at once together, with what the frames up to them add up
    to; ends when the archive is sealed.

    A frame that is not good may be one that is not finished; so it is tried again until ``timeout`` seconds have
    passed without a new frame, and only then reported, as StorageError.
    """
    replay = Replay(reader, limits)
    last = time.monotonic()
    while True:
        why = "its writer may have stopped"
        found: list[Commit] = []
        try:
            for frame in replay.run(reader.size):
                last = time.monotonic()
                if frame.header.type == FrameType.COMMIT:
                    found.append(Commit.from_map(unpack(plain_payload(frame), limits)))
        except CorruptError as error:
            why = str(error)
        if found:
            yield found, replay
            last = time.monotonic()
        if replay.index is not None and reader.size >= replay.offset + TRAILER_BYTES:
            return
        if timeout is not None and time.monotonic() - last > timeout:
            raise StorageError(f"{reader.name}: nothing was added for {timeout:g} s ({why})")
        time.sleep(POLL_SECONDS)
