"""The daemon's settings: defaults, then the TOML file, then the command line. Keys are the options' long names."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

from arzstream.errors import StorageError, UnsupportedError
from arzstream.limits import DEFAULT_LIMITS

__all__ = ["PRIORITIES", "PROFILES", "Settings", "SettingsError", "load", "merged"]

PROFILES = ("fast", "balanced", "max")
PRIORITIES = ("low", "idle", "normal")


class SettingsError(ValueError):
    """A setting that makes no sense; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that can be set. Field names are the long options with ``_`` for ``-``."""

    source: str = "checkpoints"
    dest: str = "archive"
    profile: str = "balanced"
    jobs: int = 0
    """Threads that code once a checkpoint is complete; 0: one per core. While a writer is at work one is used."""
    memory: int = 512
    """MiB of chunks in flight, over all checkpoints."""
    priority: str = "low"
    """``low``: lowest while a writer is at work, normal once it is done. ``idle``: always lowest. ``normal``: never."""
    rescan: float = 5.0
    """Seconds between looks at the whole source; where the system reports no changes it is looked at more often."""
    quiet_time: float | None = None
    """Seconds without a change before a checkpoint counts as complete; by default by how sure its end is."""
    grace: float = 10.0
    """Seconds that a checkpoint about to be published gets to finish when the daemon is told to stop."""
    parent: str = ""
    """An archive that checkpoints are coded against where their own run has none: a base model's."""
    max_chain: int = 8
    """Archives that may stand behind one, each coded against the next; then one is written that stands alone."""
    no_parents: bool = False
    """Code each checkpoint alone."""
    keep_last: int = 0
    """Of each run the last so many archives stay; 0: the rule does not apply. Without any rule, everything stays."""
    keep_every: int = 0
    """Archives of steps that are a multiple of this stay."""
    keep_days: float = 0.0
    """Archives that are younger stay."""
    keep_full: bool = False
    """Archives that stand alone stay."""

    def checked(self) -> Settings:
        """Itself, or :class:`SettingsError`."""
        for name in ("source", "dest"):
            if not getattr(self, name):
                raise SettingsError(f"{name}: is empty; name a folder, or give none")
        if self.profile not in PROFILES:
            raise SettingsError(f"profile: {self.profile!r} is none of {', '.join(PROFILES)}")
        if self.priority not in PRIORITIES:
            raise SettingsError(f"priority: {self.priority!r} is none of {', '.join(PRIORITIES)}")
        if not 0 <= self.jobs <= 1024:
            raise SettingsError(f"jobs: {self.jobs} is not between 0 (one per core) and 1024")
        if self.memory < 32:
            raise SettingsError(f"memory: {self.memory} MiB is too little; give at least 32")
        if not 0 <= self.max_chain <= DEFAULT_LIMITS.parent_depth - 1:
            raise SettingsError(f"max-chain: {self.max_chain} is not between 0 and {DEFAULT_LIMITS.parent_depth - 1}")
        for name in ("keep_last", "keep_every", "keep_days"):
            value = getattr(self, name)
            if not 0 <= value < 1e9:
                raise SettingsError(f"{name.replace('_', '-')}: {value} is not a number from 0 on")
        for name in ("rescan", "quiet_time", "grace"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise SettingsError(f"{name.replace('_', '-')}: {value} is not a number of seconds")
        return self

    @property
    def workers(self) -> int:
        """``jobs``, with 0 resolved to the cores this process may use."""
        if self.jobs:
            return self.jobs
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
_KINDS: dict[str, tuple[type, ...]] = {
    "source": (str,),
    "dest": (str,),
    "profile": (str,),
    "jobs": (int,),
    "memory": (int,),
    "priority": (str,),
    "rescan": (int, float),
    "quiet_time": (int, float),
    "grace": (int, float),
    "parent": (str,),
    "max_chain": (int,),
    "no_parents": (bool,),
    "keep_last": (int,),
    "keep_every": (int,),
    "keep_days": (int, float),
    "keep_full": (bool,),
}


def load(path: str) -> dict[str, Any]:
    """Read a TOML file into field names and values; unknown keys and wrong types raise :class:`SettingsError`."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except OSError as error:
        raise StorageError.from_os_error(error, "read the settings", path) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text; write it again") from error
    values: dict[str, Any] = {}
    for key, value in _parse(text, path).items():
        name = key.replace("-", "_")
        if name not in _FIELDS or "_" in key:
            known = ", ".join(sorted(field.replace("_", "-") for field in _FIELDS))
            raise SettingsError(f"{path}: {key!r} is not a setting; known are {known}")
        if not isinstance(value, _KINDS[name]) or isinstance(value, bool) != (_KINDS[name] == (bool,)):
            raise SettingsError(f"{path}: {key}: {value!r} is not of the right kind")
        values[name] = value
    return values


def merged(config: str | None, options: Mapping[str, Any]) -> Settings:
    """Defaults, overridden by the file ``config`` (or ``ARZ_CONFIG``), overridden by ``options`` that are not None."""
    path = config or os.environ.get("ARZ_CONFIG") or None
    values = load(path) if path else {}
    values.update({name: value for name, value in options.items() if value is not None})
    return Settings(**values).checked()


def _parse(text: str, path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        try:
            import tomli as toml
        except ImportError as error:
            raise UnsupportedError(f"{path}: reading it on Python 3.10 needs tomli; pip install tomli") from error
    try:
        return dict(toml.loads(text))
    except toml.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from error
