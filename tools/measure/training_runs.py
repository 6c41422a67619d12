"""Training runs whose checkpoints are measured: what each one is, how it is trained, where its checkpoints lie.

All are the demo's GPT on Python source with AdamW. A run is trained once, on one thread, so that each time gives the
same bits, or with ``--device cuda``, where it gives about the same; and kept with ``run.json``, which says what it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tools.demo.gpt import Config, Schedule, Trainer
from tools.demo.subwords import subwords

__all__ = ["RECIPES", "Recipe", "Run", "add_options", "chosen", "ensure"]

EVERY, SLOW_STEPS, SLOW = 10, 3, 4
BACK = (0, 10, 20, 30, 50, 100, 150)
"""How many steps before the last one checkpoints are kept."""
PROBE = 3e-7
"""Learning rate at which it is tried out how many weights change."""
PROBES = 3
"""How often it is tried, and the rate set anew."""
SLOW_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a run is trained. ``schedule_steps``: the cosine's length, None for a constant rate after the warm-up."""

    layers: int
    width: int
    vocabulary: int
    batch: int
    rate: float
    warmup: int
    schedule_steps: int | None
    beta2: float = 0.95
    steps: int = 250

    def describe(self) -> str:
        tokens = "bytes" if self.vocabulary == 256 else f"{self.vocabulary:,} subwords"
        then = f"then cosine to a tenth at step {self.schedule_steps}" if self.schedule_steps else "then constant"
        return (
            f"a GPT of {self.layers} layers of width {self.width} over {tokens}, {self.batch} windows of 128 a step, "
            f"AdamW with betas 0.9 and {self.beta2:g}, {self.warmup} steps of warm-up to a rate of {self.rate:g}, "
            f"{then}"
        )


RECIPES = {
    "bytes-constant": Recipe(4, 512, 256, 4, 5e-4, 10, None),
    "bytes-constant-999": Recipe(4, 512, 256, 4, 5e-4, 10, None, beta2=0.999),
    "subwords-constant": Recipe(4, 384, 8192, 8, 5e-4, 10, None),
    "subwords-cosine": Recipe(4, 384, 8192, 8, 5e-4, 20, 300),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run: ``notes`` are the recipe, parameters, rate and loss at the last step, and the low rate after."""

    folder: Path
    notes: dict[str, Any]

    def at(self, step: int) -> Path:
        """The bf16 weights after so many steps."""
        return self.folder / f"step-{step:04}.safetensors"

    def slow(self, number: int) -> Path:
        """The bf16 weights after ``number`` times three steps, 1 to 4, at a rate at which about 1 % change in three."""
        return self.folder / f"slow-{number}.safetensors"


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--run``, and one option for each field of :class:`Recipe`, which replaces it in every run that is chosen."""
    parser.add_argument("--run", action="append", choices=RECIPES, help="may be given several times (all)")
    parser.add_argument("--folder", type=Path, help="where the runs are, or are kept (a temporary folder)")
    parser.add_argument("--device", default="cpu", help="what the runs are trained on, cuda for example (cpu)")
    for field in dataclasses.fields(Recipe):
        kind = float if "float" in str(field.type) else int
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, help=f"{field.name} of the run, if not its own"
        )


def chosen(args: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes that the options name, by the run's name."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    changed = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    return {name: dataclasses.replace(RECIPES[name], **changed) for name in args.run or RECIPES}


def ensure(recipe: Recipe, folder: Path, device: str = "cpu") -> Run:
    """The run in ``folder``, trained now if that is empty. SystemExit if it holds another one."""
    notes = folder / "run.json"
    if not notes.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SystemExit(f"{folder}: holds no run; name an empty folder")
        notes.write_text(json.dumps(_train(recipe, folder, device), indent=2) + "\n")
    run = Run(folder, json.loads(notes.read_text()))
    if run.notes["recipe"] != dataclasses.asdict(recipe):
        raise SystemExit(f"{folder}: holds a run that was trained otherwise; name another folder")
    return run


def _train(recipe: Recipe, folder: Path, device: str) -> dict[str, Any]:
    """Write the checkpoints; the notes."""
    torch.set_num_threads(1)
    config = Config(recipe.layers, recipe.width, max(1, recipe.width // 64), vocabulary=recipe.vocabulary)
    trainer = Trainer(
        config,
        batch=recipe.batch,
        schedule=Schedule(recipe.rate, recipe.warmup, recipe.schedule_steps),
        betas=(0.9, recipe.beta2),
        text=None if recipe.vocabulary == 256 else subwords(recipe.vocabulary),
        device=device,
    )
    run, rates = Run(folder, {}), []
    print(f"training {recipe.describe()}", flush=True)
    while trainer.step < recipe.steps:
        loss = trainer.train(EVERY)
        if recipe.steps - trainer.step in BACK:
            print(f"step {trainer.step}, loss {loss:.3f}, rate {trainer.rate:.3g}", flush=True)
            _save(trainer, run.at(trainer.step))
            rates.append([trainer.step, trainer.rate, loss])
    slow = _slow(trainer, run)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    return {
        "recipe": dataclasses.asdict(recipe), "device": device, "parameters": parameters, "rates": rates,
        "slow_rate": slow,
    }  # fmt: skip


def _slow(trainer: Trainer, run: Run) -> float:
    """Go on at a rate at which about a hundredth of the weights changes in three steps; that rate."""
    trainer.hold(PROBE)
    for _ in range(PROBES):
        before = _words(trainer)
        trainer.train(SLOW_STEPS)
        changed = float((_words(trainer) != before).float().mean())
        trainer.hold(trainer.rate * SLOW_SHARE / max(changed, SLOW_SHARE / 10))
    for number in range(1, SLOW + 1):
        trainer.train(SLOW_STEPS)
        _save(trainer, run.slow(number))
    return trainer.rate


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.bfloat16().cpu() for name, value in trainer.model.state_dict().items()}


def _words(trainer: Trainer) -> torch.Tensor:
    """All bf16 weights as integers."""
    return torch.cat([value.flatten() for value in _weights(trainer).values()]).view(torch.int16)


def _save(trainer: Trainer, path: Path) -> None:
    save_file(_weights(trainer), path)
