"""A progress bar on standard error, if that is a terminal; rich is imported only then."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

__all__ = ["Progress", "progress_bar"]

Progress = Callable[[int, int, str], None]
"""``progress(done bytes, total bytes, what is being done)``."""


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress | None]:
    """What to give the library as ``progress``: None if nobody would see it. The bar is gone when the block is left."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.progress import TransferSpeedColumn as Speed

    name = TextColumn("{task.description:<9}")
    columns = (name, BarColumn(), TaskProgressColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        yield show
