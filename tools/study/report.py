"""Which models a study runs, and the table that it prints."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

from tools.study import baselines, neural, sequences, trees
from tools.study.changes import CAUSAL, FREE, INPUTS, MORE
from tools.study.checkpoints import Run
from tools.study.neural import Teacher
from tools.study.sample import Sample, draw
from tools.study.scores import Result

__all__ = ["MODELS", "Options", "Study", "ablation", "table"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What bounds a study, and sizes of its models."""

    samples: int = 1_000_000
    """Weights to learn from; a third as many are scored."""
    steps: int = 2000
    """Steps of training of each network, of 2048 weights each."""
    hidden: tuple[int, ...] = (48, 48)
    """Hidden layers of the teacher."""
    classes: tuple[int, ...] = (32, 64, 128)
    student_classes: int = 64
    leaves: tuple[int, ...] = (64, 256, 2048)
    profile: str = "balanced"
    seed: int = 0


class Study:
    """A run of checkpoints, what was drawn from it, and what several models need: made when first asked for."""

    def __init__(self, run: Run, options: Options) -> None:
        self.run, self.options = run, options

    @functools.cached_property
    def sample(self) -> Sample:
        return draw(self.run, self.options.samples, self.options.seed)

    def teach(self, names: tuple[str, ...], steps: int = 0) -> Teacher:
        o = self.options
        return Teacher.learned(self.sample, names, o.hidden, steps or o.steps, o.seed)

    @functools.cached_property
    def teacher(self) -> Teacher:
        return self.teach(INPUTS)


def _list(one: Result | list[Result]) -> list[Result]:
    return one if isinstance(one, list) else [one]


def _widths(hidden: tuple[int, ...]) -> str:
    return "-".join(map(str, hidden))


def _teacher(s: Study) -> Result:
    return s.teacher.result(s.run, s.sample, f"MLP {_widths(s.options.hidden)}, softmax: the teacher")


def _above(s: Study) -> Result:
    title = f"MLP {_widths(s.options.hidden)} with the rows above"
    return s.teach(INPUTS + CAUSAL).result(s.run, s.sample, title)


def _free(s: Study) -> list[Result]:
    o = s.options
    network = s.teach(FREE).result(s.run, s.sample, f"MLP {_widths(o.hidden)}")
    tree = trees.grown(s.run, s.sample, FREE, o.leaves[-1:], (o.student_classes,), o.seed)[-1]
    results = (network, tree)
    return [dataclasses.replace(r, title=f"{r.title}; no scales are sent", scales=0.0) for r in results]


def _students(s: Study) -> list[Result]:
    o = s.options
    return neural.students(s.run, s.sample, s.teacher, [(16, 16), (32, 32)], o.student_classes, o.steps, o.seed)


def _trees(s: Study) -> list[Result]:
    return trees.grown(s.run, s.sample, INPUTS, s.options.leaves, s.options.classes[-2:], s.options.seed)


def _oblivious(s: Study) -> list[Result]:
    return trees.oblivious(s.run, s.sample, INPUTS, (8, 12, 14), s.options.student_classes, s.options.seed)


def _gru(s: Study) -> list[Result]:
    return sequences.gru(s.run, s.sample, INPUTS, (16, 32), s.options.steps, s.options.seed)


def _transformer(s: Study) -> Result:
    return sequences.transformer(s.run, s.sample, INPUTS + CAUSAL, 48, 2, s.options.steps, s.options.seed)


MODELS: dict[str, Callable[[Study], Result | list[Result]]] = {
    "alone": lambda s: baselines.alone(s.run),
    "xor": lambda s: baselines.xor(s.run),
    "tables": lambda s: baselines.hand_made(s.run, s.sample),
    "linear": lambda s: neural.linear(s.run, s.sample, INPUTS, s.options.steps, s.options.seed),
    "mlp": _teacher,
    "above": _above,
    "free": _free,
    "clusters": lambda s: neural.clusters(s.run, s.sample, s.teacher, s.options.classes, s.options.seed),
    "student": _students,
    "tree": _trees,
    "oblivious": _oblivious,
    "gru": _gru,
    "transformer": _transformer,
    "codec": lambda s: baselines.codec(s.run, s.options.profile),
}
"""By the names that ``--models`` takes, in the order of the report."""


# ---- the table

HEAD = ("model", "bits", "scales", "model's", "total", "of raw", "of XOR", "training", "decoding", "measured on")


def _cells(r: Result, raw: float, xor: float | None) -> tuple[str, ...]:
    return (
        r.title,
        *(f"{x:.3f}" for x in (r.bits, r.scales, r.model)),
        f"{r.total:.3f}",
        f"{r.total / raw:.1%}",
        f"{r.total / xor:.3f}" if xor else "",
        f"{r.training:.1f} s" if r.training >= 0.05 else "",
        "" if r.decoding is None else f"{r.decoding:.3g} ns",
        r.how,
    )


def table(study: Study, models: list[str], progress: Callable[[str], None]) -> Iterator[str]:
    """Lines of a Markdown table, as they are found. Bits are per weight."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|---" * len(HEAD) + "|"
    xor = None
    for name in models:
        began = time.monotonic()
        for result in _list(MODELS[name](study)):
            if result.title.startswith("XOR") and result.how:
                xor = result.total
            yield f"| {' | '.join(_cells(result, study.run.word_bits, xor))} |"
        progress(f"{name}: {time.monotonic() - began:.0f} s")


def ablation(study: Study) -> Iterator[str]:
    """Lines of a table of what the teacher loses without each of its inputs, and gains with each of some more."""
    everything = INPUTS + CAUSAL + MORE
    study.sample = draw(study.run, study.options.samples, study.options.seed, everything)

    def bits(names: tuple[str, ...]) -> float:
        return study.teach(names).result(study.run, study.sample, "").bits

    base = bits(INPUTS)
    yield "| inputs | bits | difference |"
    yield "|---|---|---|"
    yield f"| the {len(INPUTS)} | {base:.4f} | |"
    cases = [(f"without {name}", tuple(n for n in INPUTS if n != name)) for name in INPUTS]
    cases += [(f"and {name}", (*INPUTS, name)) for name in CAUSAL + MORE]
    cases += [("and the rows above", INPUTS + CAUSAL), ("and everything", everything)]
    for title, names in cases:
        found = bits(names)
        yield f"| {title} | {found:.4f} | {found - base:+.4f} |"
