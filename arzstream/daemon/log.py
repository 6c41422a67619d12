"""One structured line per event on standard error: a time, a level, and ``key=value`` pairs."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback

from arzstream.errors import ArzError

__all__ = ["event", "logger", "mistake", "set_up"]

logger = logging.getLogger("arzstream.daemon")


def set_up(level: str | None = None, stream: object = None) -> None:
    """Send lines of ``level`` (default: ``ARZ_LOG``, else ``info``) and above to standard error."""
    name = (level or os.environ.get("ARZ_LOG") or "info").upper()
    number = logging.getLevelName(name)
    logger.setLevel(number if isinstance(number, int) else logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)  # type: ignore[arg-type]
    handler.setFormatter(_Line())
    logger.addHandler(handler)


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log ``name`` and the fields that are not None."""
    if logger.isEnabledFor(level):
        pairs = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)
        logger.log(level, "%s%s", f"event={name}", f" {pairs}" if pairs else "")


def mistake(checkpoint: bytes, error: Exception) -> ArzError:
    """Log a mistake of ours, which must stop one checkpoint only, and be seen; the error that it is blocked with."""
    lines = "".join(traceback.format_exception(error))
    event("internal-error", level=logging.ERROR, checkpoint=checkpoint, traceback=lines)
    what = f"{type(error).__name__}: {error}"
    return ArzError(f"{os.fsdecode(checkpoint)}: cannot be archived: {what}; please report this")


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{int(record.msecs):03d}Z level={record.levelname.lower()} {record.getMessage()}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    # Names come from whoever can write the watched folder: nothing in them may start a line of its own.
    if text and all(c.isprintable() and c not in ' "=\\' for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped) + '"'
