"""The command line: ``arzstream VERB``. One module for each verb; none is imported before it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``arzstream`` with ``argv`` (default: the process's arguments); returns the exit code.

    0 done; 1 the data is bad; 2 usage; 3 unsupported; 4 I/O; 130 interrupted. Nothing is raised.
    """
    from arzstream.cli.run import run

    return run(list(sys.argv[1:] if argv is None else argv))
