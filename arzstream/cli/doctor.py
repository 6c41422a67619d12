"""``arzstream doctor``"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import click

from arzstream.cli.failure import UNSUPPORTED, UnwelcomeResult
from arzstream.cli.options import json_option, print_json
from arzstream.cli.table import Column, Row, room, table
from arzstream.cli.text import counted, safe, size

__all__ = ["command"]


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say which kernels, packages and machine there are, what is missing, and what to do about it.

    Ends with 3 if a needed part is missing.

    \b
    arzstream doctor
    """
    found = _examine()
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            print(line)
    if not found["healthy"]:
        first, *more = found["problems"]
        raise UnwelcomeResult(first + (f" (and {len(more)} more)" if more else ""), UNSUPPORTED)


def _examine() -> dict[str, Any]:
    import arzstream
    from arzstream.cli import installation

    found: dict[str, Any] = {
        "arzstream": arzstream.__version__,
        "location": os.path.dirname(os.path.abspath(arzstream.__file__)),
        "python": platform.python_version(),
        "executable": sys.executable,
        "kernels": installation.kernels(),
        "machine": installation.machine(),
        "packages": installation.packages(),
    }
    found["problems"] = list(_problems(found))
    found["advice"] = list(_advice(found))
    found["healthy"] = not found["problems"]
    return found


def _problems(found: dict[str, Any]) -> Iterator[str]:
    """What must be put right before everything works."""
    missing = [package for package in found["packages"] if package["needed"] and package["version"] is None]
    for package in missing:
        yield f"{package['name']}: is not installed, {package['purpose']} need it; pip install {package['name']}"
    error = found["kernels"]["error"]
    if error and not missing:
        yield f"kernels: {error}" + ("" if ";" in error else "; install arzstream again")
    if found["machine"]["byte_order"] != "little":
        yield "machine: big-endian machines have not been tried; use a little-endian one"


def _advice(found: dict[str, Any]) -> Iterator[str]:
    """What would make it better."""
    kernels = found["kernels"]
    if kernels["backend"] == "numpy" and kernels["native_error"]:
        yield f"The native kernels are missing, so NumPy does the work, slowly: {kernels['native_error']}."
    elif kernels["backend"] == "numpy":
        yield "ARZ_KERNELS=numpy keeps the native kernels from being used; unset it for speed."
    watches = found["machine"]["inotify_watches"]
    if watches is not None and watches < 8192:
        yield f"Only {watches} folders can be watched at once; sysctl fs.inotify.max_user_watches=524288 allows more."


def _lines(found: dict[str, Any]) -> Iterator[str]:
    kernels, machine = found["kernels"], found["machine"]
    yield f"arzstream   {found['arzstream']} in {safe(found['location'])}"
    yield f"Python      {found['python']}, {safe(found['executable'])}"
    yield f"kernels     {_kernels(kernels)}"
    yield f"processor   {safe(machine['processor'])}, {machine['architecture']}, {counted(machine['cores'], 'core')}"
    yield f"memory      {_memory(machine)}"
    yield f"system      {safe(machine['system'])}"
    yield ""
    columns = (Column("PACKAGE"), Column("VERSION"), Column("FOR", give=True))
    yield from table(columns, [_row(package) for package in found["packages"]], room())
    for text in (*found["advice"], *found["problems"]):
        yield ""
        yield text


def _kernels(kernels: dict[str, Any]) -> str:
    """The backend, its instruction set, and which others this processor and build could use."""
    backend, features = kernels["backend"], kernels["features"]
    if backend != "native":
        return str(backend or "none")
    used = kernels["wanted"] if kernels["wanted"] in features else features[-1]
    others = [feature for feature in features if feature != used]
    fetched = f", tables by {kernels['lookups']}" if kernels["lookups"] else ""
    return f"native, {used}{fetched}" + (f" (also here: {', '.join(others)})" if others else "")


def _memory(machine: dict[str, Any]) -> str:
    total, free, limit = machine["memory"], machine["memory_available"], machine["memory_limit"]
    if total is None:
        return "unknown"
    text = size(total)
    if free is not None:
        text += f", {size(free)} free"
    return text if limit is None else f"{text}, at most {size(limit)} for this container"


def _row(package: dict[str, Any]) -> Row:
    absent = "MISSING" if package["needed"] else "not installed"
    return Row((package["name"], package["version"] or absent, package["purpose"]))
