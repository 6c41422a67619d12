"""``arzstream watch``: the daemon, in the foreground."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from arzstream.cli.options import json_option, keep_options, print_json, quiet_option

if TYPE_CHECKING:
    from arzstream.daemon.config import Settings

__all__ = ["command"]


@click.command("watch")
@click.argument("source", required=False)
@click.argument("dest", required=False)
@click.option("--once", is_flag=True, help="Archive what is there and complete, then exit.")
@click.option("--config", metavar="FILE", help="TOML file with these options' long names as keys. [ARZ_CONFIG]")
@click.option("--jobs", type=int, metavar="N", help="Threads for complete checkpoints; 0 is one per core. [0]")
@click.option("--profile", metavar="NAME", help="fast, balanced or max. [balanced]")
@click.option("--memory", type=int, metavar="MB", help="Bound of the data in flight, in MiB. [512]")
@click.option("--priority", metavar="NAME", help="low (while a writer works), idle (always) or normal. [low]")
@click.option("--rescan", type=float, metavar="S", help="Seconds between looks at the whole source, or the bucket. [5]")
@click.option("--quiet-time", type=float, metavar="S", help="Seconds without a change that make a checkpoint complete.")
@click.option("--grace", type=float, metavar="S", help="Seconds to complete what is nearly done when stopped. [10]")
@click.option("--parent", metavar="ARCHIVE", help="A base model, for what has nothing before it in its run.")
@click.option("--max-chain", type=int, metavar="N", help="With N archives behind the last, one is coded alone. [8]")
@click.option("--no-parents", is_flag=True, default=None, help="Code each checkpoint alone.")
@keep_options
@click.option("--log", "log_level", metavar="LEVEL", help="debug, info, warning or error. [ARZ_LOG, info]")
@quiet_option
@json_option
def command(
    source: str | None,
    dest: str | None,
    once: bool,
    config: str | None,
    log_level: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Archive checkpoints from SOURCE in DEST while they are being written.

    Each checkpoint becomes DEST/<its path>.arz. SOURCE is only read. Both are folders, or URLs of folders in buckets.
    One log line on standard error for each change of state; arzstream status DEST shows the whole. SOURCE is
    ./checkpoints and DEST ./archive unless named here or in the settings.

    A checkpoint is coded against the one before it in its run, and needs that archive from then on. All archives stay,
    unless a --keep option says which; archives that a kept one needs stay, too.

    Signals: TERM ends it cleanly, HUP reads the settings again, USR1 pauses, USR2 goes on.

    \b
    arzstream watch runs/exp7 /archive/exp7
    arzstream watch s3://runs/exp7 s3://models/exp7
    arzstream watch runs/exp7 /archive/exp7 --keep-last 5 --keep-every 1000
    """
    from arzstream.daemon import log
    from arzstream.daemon.config import SettingsError, merged
    from arzstream.daemon.supervisor import Supervisor
    from arzstream.kernels.api import kernels

    named = {"source": source, "dest": dest, **options}

    def settings() -> Settings:
        return _checked(merged(config, named))

    kernels()  # what they lack is no checkpoint's fault
    log.set_up("warning" if quiet and log_level is None else log_level)
    try:
        daemon = Supervisor(settings(), once=once, reload=settings)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    code = daemon.run()
    totals = daemon.totals()
    if as_json:
        print_json(totals)
    elif once and not quiet:
        click.echo(_sentence(totals))
    if code and code != 130:
        _complain(totals, code)
    raise click.exceptions.Exit(code)


def _checked(settings: Settings) -> Settings:
    """What does not work with stores yet is said at once. A base model that is not there is a slip of the pen."""
    from arzstream.daemon.retain import Rules
    from arzstream.errors import StorageError, UnsupportedError
    from arzstream.store.address import is_remote, is_url, redacted

    if is_remote(settings.dest):
        if Rules.of(settings).any:
            raise UnsupportedError(
                f"{redacted(settings.dest)}: this version removes nothing from buckets; leave the --keep options out"
            )
        if settings.parent:
            raise UnsupportedError(
                f"{redacted(settings.dest)}: --parent takes a local destination; leave it out, or name a folder"
            )
    if settings.parent and not is_url(settings.parent) and not os.path.exists(settings.parent):
        raise StorageError(f"{settings.parent}: there is no such archive; name the one to code against (--parent)")
    return settings


def _sentence(totals: dict[str, Any]) -> str:
    from arzstream.cli.text import counted, percent, size

    parts = [f"{counted(totals['published'], 'checkpoint')} archived"]
    if totals["bytes_in"]:
        ratio = percent(totals["bytes_out"] / totals["bytes_in"])
        parts.append(f"{size(totals['bytes_in'])} as {size(totals['bytes_out'])} ({ratio})")
    for state in ("waiting", "blocked", "gone"):
        if totals[state]:
            parts.append(f"{totals[state]} {state}")
    return ", ".join(parts)


def _complain(totals: dict[str, Any], code: int) -> None:
    from arzstream.cli.failure import UnwelcomeResult

    problems = totals["problems"]
    more = f" (and {len(problems) - 1} more; see arzstream status)" if len(problems) > 1 else ""
    if problems:
        raise UnwelcomeResult(f"{problems[0]}{more}", code)
