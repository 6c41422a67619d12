"""Try millions of damaged files on the parsers.

    python -m tools.fuzz --parser hdf5 --inputs 100000 --seed 3     one parser
    python -m tools.fuzz --all --inputs 1000000                     all of them, one after the other
    python -m tools.fuzz --replay FOLDER                            one input that failed

An input that breaks a promise is written to a folder below ``--failures``, and its path is printed. Exit status 1 if
there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.fuzz.campaign import Failure, Outcome, replay, run
from tools.fuzz.targets import PARSERS


def write(failure: Failure, parser: str, seed: int, place: Path) -> Path:
    """The input as files, and how it was examined."""
    folder = place / f"{parser}-{seed}-{failure.number}"
    (folder / "files").mkdir(parents=True, exist_ok=True)
    names = {}
    for number, (path, data) in enumerate(failure.files.items()):
        (folder / "files" / str(number)).write_bytes(data)
        names[str(number)] = path.hex()
    about = {
        "parser": parser, "seed": seed, "number": failure.number, "dice": failure.dice, "path": failure.path.hex(),
        "files": names, "what": failure.what,
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about, indent=1))
    return folder


def again(folder: Path) -> None:
    """Examine an input that was written."""
    about = json.loads((folder / "about.json").read_text())
    files = {bytes.fromhex(path): (folder / "files" / name).read_bytes() for name, path in about["files"].items()}
    replay(about["parser"], bytes.fromhex(about["path"]), files, about["dice"])


def told(outcome: Outcome) -> str:
    rate = outcome.inputs / max(outcome.seconds, 1e-9)
    return (
        f"{outcome.parser:13} {outcome.inputs:>10,} inputs, {outcome.kinds:>4} kinds of outcome, "
        f"{outcome.archived:>4} archived and restored, {rate:>6,.0f}/s, slowest {1000 * outcome.slowest:>4.0f} ms, "
        f"most memory {outcome.memory / 1e6:.1f} MB, {len(outcome.failures)} failed"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parser", action="append", choices=[*PARSERS], default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each parser")
    parser.add_argument("--seconds", type=float, default=1e9, help="for each parser at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay:
        again(options.replay)
        print("nothing is wrong with it")
        return 0
    failed = False
    for name in [*PARSERS] if options.all else options.parser or parser.error("--parser NAME or --all"):
        outcome = run(name, options.inputs, options.seed, options.seconds)
        print(told(outcome), flush=True)
        for failure in outcome.failures:
            failed = True
            print(
                f"  {write(failure, name, options.seed, options.failures)}\n    " + failure.what.replace("\n", "\n    ")
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
