"""What there is to work with: the kernels, the machine, the packages. Nothing heavy is imported to find out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import sys
from typing import Any

__all__ = ["PACKAGES", "Package", "kernels", "machine", "packages"]


@dataclasses.dataclass(frozen=True)
class Package:
    """A distribution and what it is for; ``needed`` says that arzstream is incomplete without it."""

    name: str
    purpose: str
    needed: bool = True


PACKAGES = (
    Package("numpy", "everything"),
    Package("torch", "tensors"),
    Package("zstandard", "the codec zstd and all metadata"),
    Package("xxhash", "checksums"),
    Package("google-crc32c", "checksums"),
    Package("blake3", "digests of tensors"),
    Package("constriction", "checks of the entropy coder"),
    Package("msgpack", "metadata"),
    Package("watchdog", "arzstream watch"),
    Package("fsspec", "URLs"),
    Package("click", "the command line"),
    Package("rich", "progress bars"),
    Package("nanobind-backend", "the native kernels", needed=False),
    Package("aiohttp", "http:// URLs", needed=False),
    Package("s3fs", "s3:// URLs", needed=False),
    Package("gcsfs", "gs:// URLs", needed=False),
    Package("adlfs", "az:// URLs", needed=False),
    Package("paramiko", "sftp:// URLs", needed=False),
)


def packages() -> list[dict[str, Any]]:
    """Every package of :data:`PACKAGES` with its version, None if it is not installed."""
    return [{**dataclasses.asdict(package), "version": _version(package.name)} for package in PACKAGES]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def kernels() -> dict[str, Any]:
    """The backend in use and why; ``error`` says what keeps us from working at all."""
    wanted = os.environ.get("ARZ_KERNELS") or "auto"
    found: dict[str, Any] = {"backend": None, "wanted": wanted, "features": [], "native_error": None, "error": None}
    found["lookups"] = ""
    try:
        from arzstream.kernels import api

        found["native_error"] = api.native_error()
        found["features"] = api.cpu_features()
        found["backend"], found["lookups"] = api.backend(), api.lookups()
        _try_out()
    except Exception as error:  # noqa: BLE001  (whatever it is, saying what is wrong is what doctor is for)
        found["error"] = " ".join(str(error).split()) or type(error).__name__
    return found


def _try_out() -> None:
    """Code a little and decode it again; raises if that does not give the same bytes."""
    import numpy as np

    from arzstream.codec import registry
    from arzstream.codec.base import ChunkContext
    from arzstream.codec.best import encode_best
    from arzstream.codec.dtypes import dtype

    values = np.random.default_rng(0).normal(0, 0.02, 1 << 14).astype("<f4")
    data = memoryview((values.view("<u4") >> 16).astype("<u2").tobytes())
    context = ChunkContext(dtype("BF16"), 1, len(values))
    codec, payload = encode_best(data, context, "balanced")
    out = bytearray(len(data))
    registry.get(codec).decode(memoryview(payload), memoryview(out), context)
    if out != data:
        raise ArithmeticError(
            f"{registry.name_of(codec)} does not give back what it was given; install arzstream again"
        )


def machine() -> dict[str, Any]:
    """Processor, cores, memory (bytes; None where the system does not say), and limits that ``watch`` runs into."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": _memory("MemTotal"),
        "memory_available": _memory("MemAvailable"),
        "memory_limit": _memory_limit(),
        "inotify_watches": _number("/proc/sys/fs/inotify/max_user_watches"),
        "byte_order": sys.byteorder,
    }


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _memory(key: str) -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    if key == "MemTotal" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _memory_limit() -> int | None:
    """What a container allows, where that is less than the machine has."""
    limits = (_number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    total = _memory("MemTotal") or 1 << 62
    return next((limit for limit in limits if limit is not None and limit < total), None)


def _number(path: str) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError:
        return []
