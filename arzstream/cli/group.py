"""The verbs, each loaded when it is called, and what they share."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any

import click

__all__ = ["PROGRAM", "VERBS", "LazyGroup", "State", "program", "state"]

PROGRAM = "arzstream"
VERBS = {
    "pack": "Pack checkpoints into an archive, and prove it before it appears.",
    "unpack": "Restore the original files, byte for byte.",
    "ls": "List files and tensors: dtype, shape, codec, ratio.",
    "cat": "Write one original file to standard output.",
    "verify": "Check that an archive is whole, or equals its source.",
    "diff": "Say which tensors changed between two archives, and by how much.",
    "rebase": "Code an archive anew, against another parent or alone.",
    "recover": "Save what is intact in a damaged archive, and list what is not.",
    "bench": "Measure ratio and speed on your own files, beside memcpy and installed peers.",
    "watch": "Archive checkpoints while they are being written.",
    "prune": "Apply retention to a daemon's archives, without breaking chains.",
    "status": "Say what the daemon has done, is doing, and is waiting for.",
    "doctor": "Say what this installation has and what it lacks.",
}
"""Verb → what it does. ``arzstream.cli.VERB.command`` is the click command."""


@dataclasses.dataclass
class State:
    """What is known about a run when it fails."""

    debug: bool = False
    verb: str = ""
    archive: str = ""
    """The archive that is being read: messages about bad data must name it."""
    other: str = ""
    """Another one that is being read, which messages that begin with it are about."""
    advice: str = ""
    """What to do about bad data in it, for messages that do not say."""


def state() -> State:
    """The state of this run."""
    return click.get_current_context().ensure_object(State)


class LazyGroup(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"arzstream.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        if not any(isinstance(item, click.Option) and "--debug" in item.opts for item in command.params):
            command.params.append(_debug_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0] if args else ""
        if verb not in VERBS and not ctx.resilient_parsing:
            if verb.startswith("-"):
                raise click.UsageError(f"no such option: {verb}", ctx)
            close = difflib.get_close_matches(verb, VERBS, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"the verbs are {', '.join(VERBS)}"
            raise click.UsageError(f"no such verb: {verb!r}; {hint}", ctx)
        ctx.ensure_object(State).verb = verb
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, because loading every verb takes its time."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(State).debug = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
    )


def _show_version(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and not context.resilient_parsing:
        from arzstream import __version__

        click.echo(f"{PROGRAM} {__version__}")
        context.exit()


program = LazyGroup(
    PROGRAM,
    help="""Make model checkpoints smaller without changing a bit, while they are being written.

    \b
    arzstream pack runs/exp7/step-2000 -o step-2000.arz
    arzstream ls step-2000.arz
    arzstream unpack step-2000.arz -o restored
    arzstream watch runs/exp7 /archive/exp7

    Exit codes: 0 done, 1 the data is bad, 2 usage, 3 a newer version or a missing part is needed, 4 storage,
    130 interrupted.""",
    epilog="arzstream VERB --help says more about a verb.",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Say which it is.",
        ),
        _debug_option(),
    ],
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
