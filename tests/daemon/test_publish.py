"""The last step of an archive in the daemon: it gets the first free name, and does not try for ever."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from arzstream.daemon.destination import Folder, Growing
from arzstream.daemon.publish import MOST_NAMES, make_visible
from arzstream.errors import StorageError
from arzstream.store.ranges import RangeReader


class Refused(Growing):
    """A store that says of the first ``times`` names that they are taken, whatever its listings say."""

    def __init__(self, times: int, code: int = errno.EEXIST) -> None:
        self.times, self.code, self.names = times, code, list[str]()

    @property
    def reader(self) -> RangeReader | None:
        return None

    def complete(self) -> RangeReader:
        raise NotImplementedError

    def publish(self, name: str, mode: int) -> None:
        self.names.append(name)
        if len(self.names) <= self.times:
            raise StorageError("refused", errno=self.code)

    def abort(self) -> None:
        pass


def test_names_that_are_refused_are_followed_by_the_next_ones(tmp_path: Path) -> None:
    growing = Refused(2)
    assert make_visible(growing, Folder(str(tmp_path)), b"step-1", "source", 0o600, b"") == "step-1.3.arz"
    assert growing.names == ["step-1.arz", "step-1.2.arz", "step-1.3.arz"]


def test_a_store_that_refuses_every_name_is_left_alone_for_a_while(tmp_path: Path) -> None:
    growing = Refused(1000)
    with pytest.raises(StorageError, match=f"{MOST_NAMES} names were refused, the last of them step-1.8.arz") as caught:
        make_visible(growing, Folder(str(tmp_path)), b"step-1", "source", 0o600, b"")
    assert caught.value.errno == errno.EAGAIN and len(growing.names) == MOST_NAMES


def test_other_failures_are_no_reason_for_another_name(tmp_path: Path) -> None:
    growing = Refused(1, errno.EAGAIN)
    with pytest.raises(StorageError, match="refused"):
        make_visible(growing, Folder(str(tmp_path)), b"step-1", "source", 0o600, b"")
    assert growing.names == ["step-1.arz"]


def test_a_daemon_that_is_to_end_tries_no_other_name(tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def check_going() -> None:
        raise Ended

    growing = Refused(1000)
    with pytest.raises(Ended):
        make_visible(growing, Folder(str(tmp_path)), b"step-1", "source", 0o600, b"", check_going)
    assert growing.names == ["step-1.arz"]
