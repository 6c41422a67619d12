"""``arzstream bench``"""

from __future__ import annotations

import csv
import io
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import click

from arzstream.cli.failure import UnwelcomeResult
from arzstream.cli.options import json_option, print_json, quiet_option
from arzstream.cli.progress import progress_bar
from arzstream.cli.table import Column, Row, room, table
from arzstream.cli.text import counted, duration, safe, size
from arzstream.store.address import shown

if TYPE_CHECKING:
    from arzstream.bench.rounds import Result

__all__ = ["COLUMNS", "command", "result_row"]

PROFILES = ("fast", "balanced", "max")
MEBIBYTES = 1 << 20


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--profile", "profiles", type=click.Choice([*PROFILES, "none"]), multiple=True,
    help="Measure this profile; may be given again.  [default: all of them]",
)  # fmt: skip
@click.option("--codec", "codecs", multiple=True, metavar="NAME", help="Measure one codec alone; may be given again.")
@click.option("--peers", metavar="A,B", help="Peers to measure, or none.  [default: all that are installed]")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often each one runs.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads.  [default: one per core]")
@click.option(
    "--limit-bytes", type=click.IntRange(1 << 12), default=256 * MEBIBYTES, show_default=True, metavar="N",
    help="Of larger input a sample of about N bytes is measured.",
)  # fmt: skip
@click.option("--store", metavar="URL", help="Also say what loading from there would gain: a file or an fsspec URL.")
@click.option("--plot", "picture", metavar="PNG", help="Draw ratio against decoding speed.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as comma-separated values.")
@json_option
@quiet_option
def command(
    files: tuple[str, ...],
    profiles: tuple[str, ...],
    codecs: tuple[str, ...],
    peers: str | None,
    rounds: int,
    threads: int | None,
    limit_bytes: int,
    store: str | None,
    picture: str | None,
    as_csv: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure ratio and speed on your own files, beside memcpy and every peer that is installed.

    FILE is a checkpoint file or folder, or an archive. Each round runs every contender once; what comes back is
    compared byte for byte. GB are 10^9 bytes of the original. With one core, CPU time counts.

    \b
    arzstream bench model.safetensors
    arzstream bench model.safetensors --peers zipnn,zstandard --plot bench.png
    arzstream bench model.safetensors --store s3://bucket/some-large-object
    """
    from arzstream.bench.entropy import bounds
    from arzstream.bench.file_peers import scratch_folder
    from arzstream.bench.loading import store_rate
    from arzstream.bench.plot import Panel, need_matplotlib, plot
    from arzstream.bench.report import describe, gains
    from arzstream.bench.rounds import measure
    from arzstream.bench.sample import load
    from arzstream.cli import installation

    makers = _contenders(profiles, codecs, peers)
    if picture is not None:
        need_matplotlib()  # before minutes of measuring
    from pathlib import Path

    used = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    with tempfile.TemporaryDirectory(prefix="arz-bench-", dir=scratch_folder(3 * limit_bytes)) as folder:
        sample = load(files, limit_bytes, Path(folder))
        rate = store_rate(store) if store is not None else None
        with progress_bar(quiet or as_json) as progress:
            results = measure(makers, sample, rounds=rounds, threads=used, progress=progress)
        limits = bounds(sample.parts)
        machine, kernels = installation.machine(), installation.kernels()
        found = {
            "name": _name(files),
            "machine": {key: machine[key] for key in ("system", "architecture", "processor", "cores", "memory")},
            "kernels": {key: kernels[key] for key in ("backend", "features")},
            **describe(sample, results, limits, threads=used, rounds=rounds),
            "store": None if rate is None else gains(rate, sample, results),
        }
        if picture is not None:
            plot(picture, [Panel(f"{found['name']}, {size(sample.nbytes)}", results, limits)], machine["processor"])
    if as_json:
        print_json(found)
    elif as_csv:
        sys.stdout.write(_csv(results))
    elif not quiet:
        for line in _lines(found, results):
            print(line)
    ours = [result for result in results if result.package == "arzstream" and result.state != "ok"]
    if ours:
        raise UnwelcomeResult(f"{ours[0].name}: {ours[0].why}; report it, with the file if you can")


def _contenders(profiles: tuple[str, ...], codecs: tuple[str, ...], peers: str | None) -> list[Any]:
    """What makes the contenders. Raises UsageError for a name nobody has, UnsupportedError for a missing peer."""
    from arzstream.bench import roster

    if not profiles:
        profiles = () if codecs else PROFILES
    named = roster.installed_peers() if peers is None else [p.strip() for p in peers.split(",") if p.strip()]
    named = [] if named == ["none"] else named
    try:
        return [
            *roster.profiles([name for name in profiles if name != "none"]),
            *roster.codecs(codecs),
            *roster.peers(named),
        ]
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.995 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _name(files: tuple[str, ...]) -> str:
    first = os.path.basename(os.path.normpath(shown(files[0])))
    return first + (f" and {len(files) - 1} more" if len(files) > 1 else "")


COLUMNS = (
    Column("CONTENDER", give=True),
    Column("RATIO", right=True),
    Column("ENCODE", right=True),
    Column("DECODE", right=True),
    Column("÷ MEMCPY", right=True),
    Column("ENC ALL", right=True),
    Column("DEC ALL", right=True),
    Column("ROUNDS", right=True),
)


def result_row(result: Result) -> Row:
    """A line of the table, and what there is to say about it."""
    if result.state != "ok":
        what = "WRONG BYTES" if result.state == "wrong" else "FAILED"
        return Row((result.name, what, *["–"] * 6), (safe(result.why),))
    copy = result.name == "memcpy"
    one = ["" if copy else _number(result.speed("encode_one")), _number(result.speed("decode_one"))]
    more = ["" if copy else _number(result.speed("encode_all")), _number(result.speed("decode_all"))]
    ratio, relative = "" if copy else _percent(result.ratio), _number(result.to_memcpy("decode_one"))
    cells = (result.name, ratio, *one, relative, *more, str(result.rounds))
    return Row(cells, (result.note,) if result.note else ())


def _lines(found: dict[str, Any], results: list[Result]) -> list[str]:
    machine, kernels = found["machine"], found["kernels"]
    held = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in list(found["dtypes"].items())[:4])
    lines = [
        f"{safe(found['name'])}: {size(found['bytes'])} in {counted(found['units'], 'unit')} ({held})",
        f"{safe(machine['processor'])}, {counted(machine['cores'], 'core')}, kernels {kernels['backend']}"
        + (f" {kernels['features'][-1]}" if kernels["backend"] == "native" else ""),
        f"GB/s of original bytes, medians: ENCODE, DECODE with one core; ALL: {counted(found['threads'], 'thread')}",
        *([found["sample"]] if found["sample"] else []),
        "",
        *table(COLUMNS, [result_row(result) for result in results], room()),
        "",
    ]
    if found["bounds"]["floats"]:
        order0, gaussian = _percent(found["bounds"]["order0"]), _percent(found["bounds"]["gaussian"])
        lines.append(f"exponent entropy + raw bits {order0}; limit for Gaussian weights {gaussian}")
    if found["not_installed"]:
        lines.append(f"not installed, so not measured: {', '.join(found['not_installed'])}")
    return lines + _store_lines(found["store"])


def _store_lines(store: dict[str, Any] | None) -> list[str]:
    if store is None:
        return []
    lines = [
        "",
        f"{safe(store['name'])}: {store['gb_per_s']:.3f} GB/s in {store['requests']} requests at a time "
        f"({size(store['nbytes'])} read, first byte after {1000 * store['first']:.0f} ms)",
    ]
    for one in store["loads"]:
        lines.append(
            f"  {one['name']}: loading takes {_time(one['compressed'])} instead of {_time(one['raw'])}, "
            f"{one['gain']:.2f} times as fast"
        )
    return lines


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.3f} s"


def _csv(results: list[Result]) -> str:
    from arzstream.bench.rounds import DIRECTIONS

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    relative = [f"{direction}_to_memcpy" for direction in DIRECTIONS]
    known = ["name", "package", "version", "state", "bytes", "stored", "ratio", "rounds"]
    writer.writerow([*known, *DIRECTIONS, *relative, "note"])
    for r in results:
        writer.writerow([
            r.name, r.package, r.version, r.state, r.nbytes, r.stored, r.ratio, r.rounds,
            *map(r.speed, DIRECTIONS), *map(r.to_memcpy, DIRECTIONS), r.why or r.note,
        ])  # fmt: skip
    return out.getvalue()
