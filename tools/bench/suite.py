"""The longer benchmark: ``python -m tools.bench.suite``. Real and simulated weights, every profile, every peer.

    tools/bench/install                                 # once: peers and real weights, into .venv
    .venv/bin/python -m tools.bench.suite --write       # tools/bench/results/<machine>-<date>.{json,md,png}
    .venv/bin/python -m tools.bench.suite minilm --peers zipnn,pcodec --rounds 3

Prints a table for each file of tools/bench/weights.py, and whether what the project says it reaches holds on this
machine. The measuring is that of ``arzstream bench``; see arzstream/bench/rounds.py for what is timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arzstream.bench import roster
from arzstream.bench.entropy import Bounds, bounds
from arzstream.bench.file_peers import scratch_folder
from arzstream.bench.plot import Panel, plot
from arzstream.bench.report import describe
from arzstream.bench.rounds import Result, measure
from arzstream.bench.sample import load
from arzstream.cli import installation
from arzstream.cli.bench import COLUMNS, result_row
from arzstream.cli.table import table
from tools.bench import whole_path
from tools.bench.claims import Claim, claims
from tools.bench.weights import FILES, File, make

RESULTS = Path(__file__).resolve().parent / "results"
PICTURED = ("minilm-bf16", "efficientnet-bf16", "minilm-f16", "minilm-f32", "gaussian-7b-bf16", "gaussian-7b-fp8")


def one_file(file: File, path: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Result], Bounds]:
    """Measure one file: what is known of it, the results, the bounds."""
    entrants = [
        *roster.profiles(("fast", "balanced", "max")),
        *roster.codecs(("float_fast", "float_ctx")),
        *roster.peers(options.peers),
    ]
    with tempfile.TemporaryDirectory(prefix="arz-suite-", dir=scratch_folder(4 * options.limit_bytes)) as folder:
        sample = load([str(path)], options.limit_bytes, Path(folder))
        results = measure(entrants, sample, rounds=options.rounds, threads=options.threads, patience=options.patience)
        limits = bounds(sample.parts)
        found = describe(sample, results, limits, threads=options.threads, rounds=options.rounds)
    return {"name": file.name, "kind": file.kind, "real": file.real, **found}, results, limits


def heading(found: dict[str, Any]) -> str:
    kind = "trained weights" if found["real"] else "simulated"
    order0, gaussian = (f"{100 * found['bounds'][key]:.2f} %" for key in ("order0", "gaussian"))
    known = f"; exponent entropy + raw bits {order0}, Gaussian limit {gaussian}" if found["bounds"]["floats"] else ""
    note = f"; {found['sample']}" if found["sample"] else ""
    return f"{found['name']}: {found['bytes'] / 1e6:.1f} MB, {found['kind']}, {kind}{known}{note}"


def claim_lines(made: Sequence[Claim]) -> Iterator[str]:
    for claim in made:
        yield f"{claim.verdict:12}  {claim.text}" + (f": {claim.got}" if claim.got else "")
    held = sum(claim.holds is True for claim in made)
    yield f"{held} of {len(made)} hold"


def markdown(
    report: dict[str, Any], every: Sequence[tuple[dict[str, Any], list[Result]]], made: Sequence[Claim]
) -> str:
    machine, kernels = report["machine"], report["kernels"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    lines = [
        f"# {machine['processor']}, {machine['cores']} cores, {report['date']}",
        "",
        f"`{report['command']}`; kernels: {kernels['backend']} ({', '.join(kernels['features'])}); {versions}.",
        "",
        "GB/s of original bytes, medians over rounds. ENCODE and DECODE: one core, by CPU time; ALL: "
        f"{report['threads']} threads, by the clock. ÷ MEMCPY: decoding on one core, within the round.",
        "",
        "## What it must show",
        "",
        "| | claim | figures |",
        "|---|---|---|",
        *(f"| {claim.verdict} | {claim.text} | {claim.got} |" for claim in made),
    ]
    for found, results in every:
        rows = [result_row(result) for result in results]
        lines += ["", f"## {found['name']}", heading(found).partition(": ")[2] + ".", ""]
        lines += ["| " + " | ".join(column.title.lower() for column in COLUMNS) + " |"]
        lines += ["|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
        lines += ["| " + " | ".join(row.cells) + " |" for row in rows]
        notes = [f"{row.cells[0]}: {note}." for row in rows for note in row.notes]
        lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def slug(machine: dict[str, Any], kernels: dict[str, Any]) -> str:
    """The processor as a file name: never a host name."""
    text = f"{machine['processor']} {machine['cores']} cores {kernels['features'][-1]}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def rounded(value: Any) -> Any:
    """Four digits of every float: nothing here is known better."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def without_repeats(found: dict[str, Any]) -> dict[str, Any]:
    """A file's findings for the report: ratios to six digits, without what holds for the whole run."""
    kept = {k: v for k, v in found.items() if k not in ("versions", "not_installed", "threads", "rounds")}
    return rounded({**kept, "results": [{k: v for k, v in r.items() if k != "ratio"} for r in kept["results"]]})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("only", nargs="*", help="files to measure, by the start of their names")
    parser.add_argument("--peers", default="", help="a,b or none (default: all that are installed)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit-bytes", type=int, default=100_000_000, help="of larger files a sample is measured")
    parser.add_argument(
        "--patience", type=float, default=25.0, help="seconds a round; slower ones get a smaller sample"
    )
    parser.add_argument("--files", type=Path, help="keep the files here (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="write the report to tools/bench/results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    named = [name for name in options.peers.split(",") if name]
    options.peers = [] if named == ["none"] else named or roster.installed_peers()
    return options


def run(options: argparse.Namespace, folder: Path) -> int:
    """Measure, print, check, write; 1 if anything of ours came back wrong."""
    every: list[tuple[File, dict[str, Any], list[Result], Bounds]] = []
    began = time.monotonic()
    for file in FILES:
        if options.only and not file.name.startswith(tuple(options.only)):
            continue
        try:
            path = make(file, folder)
        except FileNotFoundError as error:
            print(f"{file.name}: left out: {error}\n", flush=True)
            continue
        found, results, limits = one_file(file, path, options)
        every.append((file, found, results, limits))
        print(heading(found), *table(COLUMNS, [result_row(r) for r in results], None), "", sep="\n", flush=True)
    whole = None if options.only else whole_path.measure(10**9, "fast", min(2, options.threads), options.rounds)
    made = claims([(file, {r.name: r for r in results}) for file, _, results, _ in every], whole)
    print(*claim_lines(made), f"{time.monotonic() - began:.0f} s", sep="\n", flush=True)
    if options.write and every:
        write(options, every, made, whole)
    return int(any(r.state != "ok" for _, _, results, _ in every for r in results if r.package == "arzstream"))


def write(
    options: argparse.Namespace,
    every: Sequence[tuple[File, dict[str, Any], list[Result], Bounds]],
    made: Sequence[Claim],
    whole: dict[str, Any] | None,
) -> None:
    """``<machine>-<date>.{json,md,png}``, with the processor's name and no other name of the machine."""
    machine, kernels = installation.machine(), installation.kernels()
    report = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m tools.bench.suite", *options.only, "--write"]),
        "machine": {key: machine[key] for key in ("architecture", "processor", "cores", "memory")},
        "kernels": {key: kernels[key] for key in ("backend", "features")},
        "versions": every[0][1]["versions"],
        "threads": options.threads,
        "rounds": options.rounds,
        "claims": [{"claim": c.text, "got": c.got, "verdict": c.verdict} for c in made],
        "whole_path": rounded(whole),
        "files": [without_repeats(found) for _, found, _, _ in every],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    base = options.results / f"{slug(report['machine'], report['kernels'])}-{report['date']}"
    base.with_suffix(".json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    base.with_suffix(".md").write_text(markdown(report, [(f, r) for _, f, r, _ in every], made))
    pictured = [e for e in every if e[0].name.startswith(tuple(p + "." for p in PICTURED))] or every[:1]
    panels = [Panel(f"{found['name']}, {found['bytes'] / 1e6:.0f} MB", results, limits)
              for _, found, results, limits in pictured]  # fmt: skip
    plot(str(base.with_suffix(".png")), panels, f"{machine['processor']}, {report['date']}")
    print(f"written: {base.name}.json, .md, .png")


def main() -> int:
    options = parse(sys.argv[1:])
    if options.files is not None:
        options.files.mkdir(parents=True, exist_ok=True)
        return run(options, options.files)
    with tempfile.TemporaryDirectory(prefix="arz-weights-") as folder:
        return run(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
