"""Writers of several processes, which meet over gloo: torch's own, and what is built on it.

DeepSpeed and Megatron are replayed: the same files in the same order with the same barriers, as their sources have it
(``DeepSpeedEngine.save_checkpoint`` of 0.19.8; ``megatron.core.dist_checkpointing.save`` of 0.16.1 and
``megatron.training.checkpointing``; ``megatron.bridge.training.checkpointing`` over a core of 0.20), since none of them
installs without a GPU's toolchain.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.writers.context import Context, Writer
from tools.writers.single import Accelerate, Trainer

__all__ = ["WRITERS"]

CASES = ("ordinary", "overwritten", "rotation", "crash", "lag", "lies")


class Gloo(Writer):
    """What the writers of several processes have in common."""

    ranks = 2
    cases = CASES

    def prepare(self) -> None:
        import torch.distributed.checkpoint  # noqa: F401

    def start(self, context: Context) -> None:
        import torch.distributed as dist

        _environment(context)
        dist.init_process_group("gloo", rank=context.rank, world_size=context.ranks)
        context.barrier = dist.barrier

    def state(self, context: Context, step: int) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(context.seed(step))
        return {f"rank{context.rank}.w{n}": torch.randn(128, 128, generator=generator) for n in range(4)}

    def make(self, context: Context, place: Path) -> None:
        if context.rank == 0:
            place.mkdir(parents=True, exist_ok=True)
        context.barrier()


class Distributed(Gloo):
    """torch.distributed.checkpoint, by one or two ranks, at once or in the background."""

    markers = (".metadata",)

    def __init__(self, ranks: int, background: bool = False) -> None:
        self.name = f"DCP, {ranks} rank{'s' if ranks > 1 else ''}" + (", async" if background else "")
        self.ranks, self._background = ranks, background
        if ranks == 1:
            self.cases = tuple(case for case in CASES if case != "lag")

    def path(self, step: int) -> str:
        return f"step-{step}"

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch.distributed.checkpoint as dcp

        if self._background:
            dcp.async_save(self.state(context, step), checkpoint_id=str(place)).result()
        else:
            dcp.save(self.state(context, step), checkpoint_id=str(place))


class DeepSpeed(Gloo):
    """ZeRO's files: ``latest`` before the last barrier."""

    name = "DeepSpeed"
    withstands = 8.0

    def path(self, step: int) -> str:
        return f"global_step{step}"

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch

        self.make(context, place)
        state = self.state(context, step)
        if context.rank == 0:
            model = {"module": state, "optimizer": None, "dp_world_size": context.ranks, "mp_world_size": 1}
            torch.save(model, place / "mp_rank_00_model_states.pt")
        optimizer = {"optimizer_state_dict": {"exp_avg": state}, "ds_version": "0.19.8"}
        torch.save(optimizer, place / f"bf16_zero_pp_rank_{context.rank}_mp_rank_00_optim_states.pt")
        if context.rank == 0:
            with open(place.parent / "latest", "w") as file:
                file.write(place.name)
        context.barrier()

    def plant(self, context: Context, source: int, target: int) -> None:
        """``latest`` names a folder that nobody has finished, or even begun."""
        if context.rank == 0:
            (context.root / "latest").write_text(self.path(target))
        context.barrier()


class Megatron(Gloo):
    """Megatron's distributed checkpoints: ``metadata.json`` last, then the tracker beside the folder."""

    name = "Megatron"
    markers = (".metadata", "metadata.json")

    def path(self, step: int) -> str:
        return f"iter_{step:07}"

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch
        import torch.distributed.checkpoint as dcp

        self.make(context, place)
        if context.rank == 0:
            torch.save({"iteration": step, "salt": context.salt}, place / "common.pt")
        dcp.save(self.state(context, step), checkpoint_id=str(place))
        if context.rank == 0:
            config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
            (place / "metadata.json").write_text(json.dumps(config))
        context.barrier()
        if context.rank == 0:
            (place.parent / "latest_checkpointed_iteration.txt").write_text(str(step))
        context.barrier()


class MegatronBridge(Megatron):
    """The same without a ``common.pt``, whose content is among the parts; and after the barrier the state of training,
    the tracker, the configuration and a tokenizer."""

    name = "Megatron-Bridge"
    withstands = 4.0  # in its first save nothing tells whether a tokenizer follows

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch
        import torch.distributed.checkpoint as dcp

        self.make(context, place)
        dcp.save({**self.state(context, step), f"rank{context.rank}.step": step}, checkpoint_id=str(place))
        if context.rank == 0:
            config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
            (place / "metadata.json").write_text(json.dumps(config))
        context.barrier()
        if context.rank == 0:
            torch.save({"step": torch.tensor(step), "salt": context.salt}, place / "train_state.pt")
            shutil.copy(place / "train_state.pt", place.parent / "latest_train_state.pt")
            (place.parent / "latest_checkpointed_iteration.txt").write_text(str(step))
            (place / "run_config.yaml").write_text(f"train:\n  salt: {context.salt}\n  step: {step}\n")
            (place / "tokenizer").mkdir(exist_ok=True)
            for name in ("tokenizer_config.json", "tokenizer.json"):
                (place / "tokenizer" / name).write_text(json.dumps({"salt": context.salt, "step": step}))
        context.barrier()


class MegatronLegacy(Megatron):
    """A file for each rank, a barrier, and the tracker."""

    name = "Megatron, torch format"
    markers = ()
    cases = tuple(case for case in CASES if case != "lies")

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch

        own = place / f"mp_rank_{context.rank:02}"
        own.mkdir(parents=True, exist_ok=True)
        torch.save({"model": self.state(context, step), "iteration": step}, own / "model_optim_rng.pt")
        context.barrier()
        if context.rank == 0:
            (place.parent / "latest_checkpointed_iteration.txt").write_text(str(step))
        context.barrier()


class AccelerateRanks(Accelerate):
    """``save_state`` of two ranks: the second one's random states may lag."""

    name = "accelerate, 2 ranks"
    ranks = 2
    withstands = 4.0
    cases = CASES

    def start(self, context: Context) -> None:
        _environment(context)
        super().start(context)


class TrainerRanks(Trainer):
    """A ``Trainer`` of two ranks: the second one's random states may lag."""

    name = "Trainer, 2 ranks"
    ranks = 2
    withstands = 4.0
    cases = CASES

    def start(self, context: Context) -> None:
        import torch.distributed as dist

        _environment(context)
        context.barrier = lambda: dist.barrier() if dist.is_initialized() else None

    def session(self, context: Context, steps: Iterable[int], keep: int = 0) -> None:
        super().session(context, steps, keep)


def _environment(context: Context) -> None:
    os.environ.update(
        RANK=str(context.rank), LOCAL_RANK=str(context.rank), WORLD_SIZE=str(context.ranks),
        LOCAL_WORLD_SIZE=str(context.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(context.port),
        GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true",
    )  # fmt: skip


WRITERS: list[Writer] = [
    Distributed(1),
    Distributed(2),
    Distributed(2, background=True),
    DeepSpeed(),
    Megatron(),
    MegatronBridge(),
    MegatronLegacy(),
    AccelerateRanks(),
    TrainerRanks(),
]
