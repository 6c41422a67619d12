"""Checkpoints for the study, of a real run: ``python -m tools.study.training_run FOLDER``.

Trains the demo's GPT on Python source with AdamW and keeps its bf16 weights every ten steps near the end as
``step-0250.safetensors``; then goes on at a rate at which about a hundredth of the weights changes in three steps, and
keeps them as ``slow-1.safetensors`` to ``slow-4``. On one thread, so that each time gives the same bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from tools.demo.gpt import Config, Trainer

EVERY, SLOW_STEPS, SLOW = 10, 3, 4


def save(trainer: Trainer, path: Path) -> None:
    save_file({name: value.bfloat16() for name, value in trainer.model.state_dict().items()}, path)


def set_rate(trainer: Trainer, rate: float) -> None:
    """From the next step but one on: the scheduler has set that of the next."""
    trainer.scheduler.base_lrs = [rate for _ in trainer.scheduler.base_lrs]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tools.study.training_run", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--keep", type=int, default=100, help="steps before the last from which on weights are kept")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--slow-rate", type=float, default=3e-7, help="learning rate afterwards")
    parser.add_argument("--beta2", type=float, default=0.95, help="AdamW's")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(Config(args.layers, args.width, args.width // 64), batch=args.batch)
    for group in trainer.optimizer.param_groups:
        group["betas"] = (0.9, args.beta2)
    print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters", flush=True)
    set_rate(trainer, args.rate)
    while trainer.step < args.steps:
        loss = trainer.train(EVERY)
        if trainer.step >= args.steps - args.keep:
            print(f"step {trainer.step}, loss {loss:.3f}", flush=True)
            save(trainer, args.folder / f"step-{trainer.step:04}.safetensors")
    set_rate(trainer, args.slow_rate)
    for k in range(1, SLOW + 1):
        trainer.train(SLOW_STEPS)
        save(trainer, args.folder / f"slow-{k}.safetensors")


if __name__ == "__main__":
    main()
