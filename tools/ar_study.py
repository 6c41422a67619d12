"""Which model of a checkpoint's changes is worth its time: ``python -m tools.ar_study OLDEST ... NEWEST``.

Each argument is a checkpoint: a safetensors file, an archive, or a folder of either; the last is the one that is coded,
the one before it its parent. For every kind of model that codecs and the literature have it prints a line: bits per
weight on weights that were held out, what scales and tables and parameters add to that, all together beside the raw
size and beside XOR with zstd; seconds of training; and nanoseconds of decoding. The same arguments and seed give the
same bits. Figures of networks are upper bounds of what decoding them takes: they are torch's, on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import time
from pathlib import Path

import torch

from tools.study.checkpoints import load
from tools.study.report import MODELS, Options, Study, ablation, table


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.ar_study", description=__doc__.split("\n")[0])
    default = Options()
    parser.add_argument("checkpoints", nargs="+", type=Path, help="files, archives or folders, the oldest first")
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--only", default="*", metavar="GLOB", help="names of the tensors that are studied")
    parser.add_argument("--samples", type=int, default=default.samples, help="weights to learn from")
    parser.add_argument("--steps", type=int, default=default.steps, help="steps of training of each network")
    parser.add_argument("--hidden", type=_numbers, default=default.hidden, help="hidden layers of the teacher: 48,48")
    parser.add_argument(
        "--classes", type=_numbers, default=default.classes, help="of the teacher's predictions, leaves"
    )
    parser.add_argument("--student-classes", type=int, default=default.student_classes)
    parser.add_argument("--leaves", type=_numbers, default=default.leaves, help="of decision trees")
    parser.add_argument("--profile", default=default.profile, help="of the codec")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--ablate", action="store_true", help="what each input is worth, in place of the models")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = _arguments()
    args = parser.parse_args(arguments)
    if len(args.checkpoints) < 2:
        parser.error("a checkpoint and its parent are needed, at least")
    models = [name for name in args.models.split(",") if name]
    if unknown := [name for name in models if name not in MODELS]:
        parser.error(f"no model is called {unknown[0]}; there are {', '.join(MODELS)}")
    torch.set_num_threads(1)
    began = time.monotonic()
    options = Options(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Options)})
    run = load(args.checkpoints, args.only)
    study = Study(run, options)
    changed = sum(int((m.words(0) != m.words(1)).sum()) for m in run.matrices)
    print(
        f"{run.titles[1]} → {run.titles[0]}, {len(run.titles)} checkpoints: {run.weights:,} weights of "
        f"{run.word_bits:.3g} bits, {changed / max(1, run.weights):.1%} changed",
        flush=True,
    )
    if run.left_out:
        print(f"left out: {len(run.left_out)} tensors, such as {run.left_out[0]}")
    print(
        f"{study.sample.held.size:,} windows of 64 weights from {study.sample.share:.1%} of them, "
        f"{study.sample.held.mean():.0%} scored and not learned from\n",
        flush=True,
    )
    lines = (
        ablation(study) if args.ablate else table(study, models, lambda text: print(text, file=sys.stderr, flush=True))
    )
    for line in lines:
        print(line, flush=True)
    print(f"\n{time.monotonic() - began:.0f} s on {platform.machine()}, torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
