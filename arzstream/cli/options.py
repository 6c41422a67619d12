"""Options that several verbs have, and how their results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import click

__all__ = [
    "archive_argument",
    "force_option",
    "json_option",
    "keep_options",
    "not_empty",
    "parents_option",
    "print_json",
    "quiet_option",
]

Function = TypeVar("Function", bound=Callable[..., Any])

archive_argument = click.argument("archive", metavar="ARCHIVE")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors; no progress bar.")
parents_option = click.option(
    "--parents", metavar="DIR-OR-URL", multiple=True,
    help="Where else to look for archives that this one was coded against; may be given again.",
)  # fmt: skip
_KEEP = (
    click.option("--keep-last", type=int, metavar="N", help="Keep the last N archives of each run."),
    click.option("--keep-every", type=int, metavar="K", help="Keep the steps that are a multiple of K."),
    click.option("--keep-days", type=float, metavar="D", help="Keep what is younger than D days."),
    click.option("--keep-full", is_flag=True, default=None, help="Keep archives that stand alone."),
)
force_option = click.option("--force", is_flag=True, help="Replace an archive of that name.")


def not_empty(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an empty name, which would be the current folder, and is what a variable that is not set gives."""
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise click.BadParameter("is empty; is a variable not set?")
    return value


def keep_options(function: Function) -> Function:
    """Which archives retention leaves alone."""
    for option in reversed(_KEEP):
        function = option(function)
    return function


def print_json(value: dict[str, Any], stream: TextIO | None = None) -> None:
    """One JSON object on one line, or indented on a terminal. ASCII only: any name survives any pipe."""
    target = stream or sys.stdout
    print(json.dumps(value, indent=2 if target.isatty() else None), file=target)
