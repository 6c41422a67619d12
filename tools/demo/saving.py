"""Saving a checkpoint the way trainers do: weights as safetensors, the rest with torch.save, a marker last."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes

from arzstream.testing.writers import EventLog, Pace, SlowFile
from tools.demo.gpt import Trainer


@dataclasses.dataclass(frozen=True)
class Saved:
    """One finished save. Times are seconds since 1970."""

    folder: Path
    started: float
    last_byte: float
    bytes: int

    @property
    def seconds(self) -> float:
        """What the writer felt."""
        return self.last_byte - self.started


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The model as it is served: bf16."""
    return {name: value.bfloat16() for name, value in trainer.model.state_dict().items()}


def save(trainer: Trainer, folder: Path, rate: float | None) -> Saved:
    """Write a checkpoint into ``folder`` at ``rate`` bytes per second at most, in place, as storage of that speed
    would take it: ``config.json``, bf16 weights, AdamW's moments with the fp32 master weights, then
    ``trainer_state.json``."""
    model = safetensors_bytes(weights(trainer), {"format": "pt"})
    rest = {
        "master": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
    }
    state = {"global_step": trainer.step, "losses": [round(loss, 4) for loss in trainer.losses]}
    pace, log = Pace(rate), EventLog()
    started = time.time()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(trainer.config), indent=2) + "\n")
    with SlowFile(folder / "model.safetensors", pace, log) as file:
        file.write(model)
    with SlowFile(folder / "optimizer.pt", pace, log) as file:
        torch.save(rest, file)
    (folder / "trainer_state.json").write_text(json.dumps(state) + "\n")
    return Saved(folder, started, time.time(), sum(p.stat().st_size for p in folder.iterdir()))
