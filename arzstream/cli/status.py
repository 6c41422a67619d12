"""``arzstream status``: what the daemon has done, is doing, and is waiting for."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from arzstream.cli.options import json_option, print_json

__all__ = ["command"]

BEAT_SECONDS = 20.0
"""A daemon that has not written its heartbeat for so long is taken for dead, should its process number be in use."""

MISSING = "its archive is missing; bring it back, or start watch again, which makes another while the source is there"


@click.command("status")
@click.argument("dest", required=False)
@click.option("--config", metavar="FILE", help="Settings that name the destination. [ARZ_CONFIG]")
@json_option
def command(dest: str | None, config: str | None, as_json: bool) -> None:
    """What the daemon that archives into DEST has done, is doing, and is waiting for.

    Reads the journal, whether a daemon is running or not. DEST is ./archive unless named here or in the settings.

    \b
    arzstream status /archive/exp7
    """
    from arzstream.daemon.bucket import home_of
    from arzstream.daemon.config import SettingsError, merged
    from arzstream.daemon.journal import Journal
    from arzstream.store.address import is_remote, redacted

    try:
        place = merged(config, {"dest": dest}).dest
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    with Journal.read(home_of(place), place) as journal:
        entries = [_checkpoint(entry, place) for entry in journal.entries().values()]
        result = {
            "dest": redacted(place) if is_remote(place) else os.path.abspath(place),
            "daemon": _daemon(journal.meta()),
            "checkpoints": entries,
            "archives": [_archive(archive, place) for archive in journal.archives().values()],
            "totals": _totals(entries),
        }
    if as_json:
        print_json(result)
    else:
        _show(result)


def _checkpoint(entry: Any, dest: str) -> dict[str, Any]:
    done = entry.state.value == "published"
    return {
        "path": os.fsdecode(entry.path),
        "state": entry.state.value,
        "since": entry.since,
        "progress": 1.0 if done else min(1.0, entry.bytes_coded / entry.bytes_in) if entry.bytes_in else 0.0,
        "bytes_in": entry.bytes_in,
        "bytes_out": entry.bytes_out,
        "ratio": entry.bytes_out / entry.bytes_in if done and entry.bytes_in else None,
        "early": entry.early,
        "latency": entry.latency,
        "strength": entry.strength,
        "waiting": entry.waiting,
        "reason": entry.reason,
        "attempts": entry.attempts,
        "retry": entry.retry or None,
        "archive": entry.archive,
        "missing": done and _missing(entry.archive, dest),
        "parent": entry.parent,
        "parent_missing": done and _missing(entry.parent, dest),
        "note": entry.note,
    }


def _missing(name: str, dest: str) -> bool:
    """Has there been an archive of that name, and is it not where it was? Stores are not asked."""
    return bool(name) and "://" not in name and "://" not in dest and not os.path.lexists(os.path.join(dest, name))


def _archive(archive: Any, dest: str) -> dict[str, Any]:
    return {
        "name": archive.name,
        "path": os.fsdecode(archive.path),
        "published": archive.published,
        "bytes_in": archive.bytes_in,
        "bytes_out": archive.bytes_out,
        "content": archive.content,
        "missing": _missing(archive.name, dest),
        "parent": archive.parent,
        "parent_missing": _missing(archive.parent, dest),
    }


def _totals(entries: list[dict[str, Any]]) -> dict[str, Any]:
    done = [entry for entry in entries if entry["state"] == "published" and not entry["missing"]]
    bytes_in, bytes_out = (sum(entry[key] for entry in done) for key in ("bytes_in", "bytes_out"))
    states = {state: sum(entry["state"] == state for entry in entries) for state in {e["state"] for e in entries}}
    return {
        "checkpoints": len(entries),
        "states": dict(sorted(states.items())),
        "missing": sum(entry["missing"] for entry in entries),
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "ratio": bytes_out / bytes_in if bytes_in else None,
    }


def _daemon(meta: dict[str, Any]) -> dict[str, Any]:
    pid, beat = meta.get("pid", 0), meta.get("beat", 0.0)
    running = bool(meta.get("running")) and _alive(pid) and time.time() - beat < BEAT_SECONDS
    return {
        "running": running,
        "paused": running and bool(meta.get("paused")),
        "pid": pid if running else None,
        "source": meta.get("source", ""),
        "last_seen": beat,
        "problem": meta.get("problem", ""),
    }


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, sending a signal would end it; the heartbeat must do
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid > 0


def _show(result: dict[str, Any]) -> None:
    from arzstream.cli.table import Column, Row, room, table
    from arzstream.cli.text import counted, percent, safe, size

    daemon, totals = result["daemon"], result["totals"]
    state = "paused" if daemon["paused"] else "running" if daemon["running"] else "not running"
    who = f", pid {daemon['pid']}" if daemon["running"] else ""
    click.echo(f"{safe(daemon['source'])} → {safe(result['dest'])}: daemon {state}{who}")
    if daemon["problem"]:
        click.echo(f"  {safe(daemon['problem'])}")
    if not result["checkpoints"]:
        click.echo("No checkpoint has been seen.")
        return
    columns = [
        Column("checkpoint", give=True),
        Column("state"),
        *(Column(title, right=True) for title in ("done", "in", "out", "ratio", "latency")),
        Column("archive", give=True),
        Column("coded against", give=True),
    ]
    rows = [Row(_cells(entry), _notes(entry)) for entry in result["checkpoints"]]
    for line in table(columns, rows, room()):
        click.echo(line)
    states = ", ".join(f"{count} {name}{_lacking(name, totals)}" for name, count in totals["states"].items())
    saved = (
        f"; {size(totals['bytes_in'])} as {size(totals['bytes_out'])}, {percent(totals['ratio'])}"
        if totals["ratio"]
        else ""
    )
    click.echo(f"{counted(totals['checkpoints'], 'checkpoint')}: {states}{saved}")


def _lacking(state: str, totals: dict[str, Any]) -> str:
    missing = totals["missing"] if state == "published" else 0
    return f", {missing} of which {'is' if missing == 1 else 'are'} missing" if missing else ""


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    from arzstream.cli.text import duration, percent, safe, size

    return (
        safe(entry["path"]) or ".",
        entry["state"],
        f"{entry['progress']:.0%}",
        size(entry["bytes_in"]),
        size(entry["bytes_out"]) if entry["bytes_out"] else "",
        percent(entry["ratio"]),
        "" if entry["latency"] is None else duration(entry["latency"]),
        safe(entry["archive"]),
        safe(entry["parent"]) or ("alone" if entry["archive"] else ""),
    )


def _notes(entry: dict[str, Any]) -> tuple[str, ...]:
    """Why it waits: one line, with what will end that."""
    from arzstream.cli.text import duration, safe

    if entry["state"] == "blocked":
        wait = max(0.0, (entry["retry"] or 0.0) - time.time())
        again = f"next try in {duration(wait)}" if wait else "next try at once"
        return (safe(f"{entry['reason']} ({entry['waiting']}; {again})"),)
    notes = []
    if entry["waiting"]:
        plain = entry["state"] in ("gone", "retired")
        notes.append(safe(entry["waiting"] if plain else f"waits for {entry['waiting']}"))
    if entry["missing"]:
        notes.append(MISSING)
    if entry["parent_missing"]:
        notes.append(safe(f"needs {entry['parent']}, which is missing; bring it back"))
    if entry["note"]:
        notes.append(safe(entry["note"]))
    return tuple(notes)
