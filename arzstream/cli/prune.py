"""``arzstream prune``: apply retention to the archives of a destination."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from arzstream.cli.failure import STORAGE, UnwelcomeResult
from arzstream.cli.options import json_option, keep_options, print_json, quiet_option
from arzstream.cli.text import counted, safe, size

if TYPE_CHECKING:
    from arzstream.daemon.config import Settings
    from arzstream.daemon.inventory import Inventory
    from arzstream.daemon.memory import Memory
    from arzstream.daemon.retain import Plan

__all__ = ["command"]


@click.command("prune")
@click.argument("dest", required=False)
@keep_options
@click.option("--yes", "-y", is_flag=True, help="Do it. Without this, and off a terminal, nothing is changed.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be done, and do not ask.")
@click.option("--no-rebase", is_flag=True, help="Keep what kept archives need, instead of coding them anew.")
@click.option("--max-chain", type=int, metavar="N", help="Archives that may stand behind one that is coded anew. [8]")
@click.option("--profile", metavar="NAME", help="fast, balanced or max, for what is coded anew. [balanced]")
@click.option("--jobs", type=int, metavar="N", help="Threads for that; 0 is one per core. [0]")
@click.option("--config", metavar="FILE", help="TOML file with these options' long names as keys. [ARZ_CONFIG]")
@json_option
@quiet_option
def command(
    dest: str | None,
    yes: bool,
    dry_run: bool,
    no_rebase: bool,
    config: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Remove archives that the --keep options do not keep from DEST, which the daemon has filled.

    Says first what it would do; nothing is removed without --yes, or a yes to its question. Whatever one option keeps
    stays, the newest archive of each run always does, and so does what a kept one was coded against: or the kept one is
    coded anew first, if that frees more than it costs. Archives that the daemon did not make are never removed.

    \b
    arzstream prune /archive/exp7 --keep-last 5 --keep-every 1000
    arzstream prune /archive/exp7 --keep-last 5 --keep-every 1000 --yes
    """
    from arzstream.daemon.config import SettingsError, merged
    from arzstream.daemon.retain import Rules
    from arzstream.errors import UnsupportedError
    from arzstream.store.address import is_remote, redacted

    try:
        settings = merged(config, {"dest": dest, **options})
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if yes and dry_run:
        raise click.UsageError("give either --yes or --dry-run")
    if not Rules.of(settings).any:
        raise click.UsageError("say what to keep: --keep-last, --keep-every, --keep-days or --keep-full")
    if is_remote(settings.dest):
        raise UnsupportedError(
            f"{redacted(settings.dest)}: this version removes nothing from buckets; let their own rules do it, "
            "for whole runs: an archive needs those that it was coded against"
        )
    inventory, plan = _look(settings, not no_rebase)
    if not as_json and not quiet:
        _show(inventory, plan)
    if not yes and not (dry_run or as_json or quiet) and plan.remove and _on_a_terminal():
        yes = click.confirm("Remove them?")
    result: dict[str, Any] = {"dest": os.path.abspath(settings.dest), "done": yes, **_planned(inventory, plan)}
    problems: list[Exception] = []
    if yes:
        with _owned(settings.dest) as memory:
            done, problems = _do(settings, memory, not no_rebase)
        result.update(done)
    if as_json:
        print_json(result)
    elif not quiet:
        click.echo(_sentence(result, yes, problems))
    if problems:
        raise UnwelcomeResult(str(problems[0]), getattr(problems[0], "exit_code", STORAGE))


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _look(settings: Settings, rebase: bool) -> tuple[Inventory, Plan]:
    """What the rules mean, without changing anything."""
    from arzstream.daemon.inventory import take
    from arzstream.daemon.journal import Journal
    from arzstream.daemon.retain import Rules, plan

    with Journal.read(settings.dest) as journal:
        archives = journal.archives()
    inventory = take(settings.dest, archives)
    return inventory, plan(inventory, Rules.of(settings), rebase=rebase, max_chain=settings.max_chain)


@contextlib.contextmanager
def _owned(dest: str) -> Iterator[Memory]:
    """The journal of a destination that no daemon is at work on, tidied up."""
    from arzstream.daemon import log
    from arzstream.daemon.destination import sweep
    from arzstream.daemon.journal import FOLDER, Journal
    from arzstream.daemon.memory import Memory
    from arzstream.daemon.prune import settle_retired
    from arzstream.store.lock import FileLock

    log.set_up("error")
    lock = FileLock(os.path.join(dest, FOLDER, "lock"))
    if not lock.acquire():
        text = f"{dest}: a daemon is at work here; stop it first, or start it with these --keep options"
        raise UnwelcomeResult(text, STORAGE)
    try:
        sweep(dest)
        with Journal.open(dest) as journal:
            memory = Memory(journal)
            settle_retired(dest, memory)
            yield memory
            memory.flush(force=True)
    finally:
        lock.release()


def _do(settings: Settings, memory: Memory, rebase: bool) -> tuple[dict[str, Any], list[Exception]]:
    """Code anew, look again, remove."""
    from arzstream.daemon.inventory import take
    from arzstream.daemon.prune import code_again, remove
    from arzstream.daemon.retain import Rules, plan

    rules, dest = Rules.of(settings), settings.dest
    inventory = take(dest, memory.archives)
    found = plan(inventory, rules, rebase=rebase, max_chain=settings.max_chain)
    rebased, problems = code_again(
        dest, memory, found, profile=settings.profile, jobs=settings.workers, max_chain=settings.max_chain
    )
    inventory = take(dest, memory.archives, inventory)
    gone = remove(dest, memory, inventory, plan(inventory, rules).remove)
    done = {
        "rebased": [dataclasses.asdict(one) for one in rebased],
        "removed": gone.names,
        "freed": gone.bytes,
        "grown": sum(one.after - one.before for one in rebased),
    }
    return done, [*problems, *([gone.problem] if gone.problem is not None else [])]


def _planned(inventory: Inventory, plan: Plan) -> dict[str, Any]:
    return {
        "keep": dict(sorted(plan.keep.items())),
        "needed": dict(sorted(plan.needed.items())),
        "remove": [{"name": name, "bytes": inventory.held[name].size} for name in plan.remove],
        "rebase": [dataclasses.asdict(step) for step in plan.rebase],
        "frees": plan.frees,
        "costs": plan.costs,
        "left_alone": plan.left_alone,
    }


def _show(inventory: Inventory, plan: Plan) -> None:
    from arzstream.cli.table import Column, Row, room, table

    parents = {step.name: step.parent for step in plan.rebase}
    rows = []
    for held in sorted(inventory.held.values(), key=lambda held: (held.run, held.published, held.name)):
        if held.name in plan.keep:
            what, why = "keep", plan.keep[held.name]
            if held.name in parents:
                parent = parents[held.name]
                why += f"; coded anew {f'against {safe(parent)}' if parent else 'to stand alone'}"
        elif held.name in plan.needed:
            what, why = "keep", f"{safe(plan.needed[held.name])} needs it"
        else:
            what, why = "remove", ""
        rows.append(Row((what, safe(held.name), size(held.size), why)))
    columns = [Column(""), Column("archive", give=True), Column("size", right=True), Column("why", give=True)]
    if rows:
        for line in table(columns, rows, room()):
            click.echo(line)
    for folder, reason in plan.left_alone.items():
        click.echo(f"nothing is removed in {safe(folder) or '.'}: {safe(reason)}")


def _sentence(result: dict[str, Any], done: bool, problems: list[Exception]) -> str:
    removed, rebased = (result["removed"], result["rebased"]) if done else (result["remove"], result["rebase"])
    freed, grown = (result["freed"], result["grown"]) if done else (result["frees"], result["costs"])
    if not removed and not rebased:
        return "nothing is removed" if done else "nothing to remove"
    text = f"{counted(len(removed), 'archive')} {'removed' if done else 'would be removed'}, {size(freed)}"
    if rebased:
        most = "" if done else "at most "
        text += f"; {len(rebased)} coded anew, {most}{size(abs(grown))} {'larger' if grown >= 0 else 'smaller'} in all"
    return text if done else f"{text}; nothing is changed without --yes"
