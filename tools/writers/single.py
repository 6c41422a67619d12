"""Writers of one process: safetensors, torch.save, transformers, accelerate, Lightning, Orbax."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.writers.context import Context, Writer

__all__ = ["WRITERS"]


class Safetensors(Writer):
    """A lone file, by one version of the library: in place, preallocated, or renamed."""

    def __init__(self, version: str) -> None:
        self.name = f"safetensors {version}"
        self.paths = (f"safetensors-{version}",)
        self.cases = ("ordinary", "overwritten", "rotation", "crash")

    def prepare(self) -> None:
        import safetensors.torch

        found = safetensors.__version__.replace("-rc.", "rc")
        assert found == self.name.split()[1], safetensors.__file__

    def path(self, step: int) -> str:
        return f"step_{step}.safetensors"

    def save(self, context: Context, place: Path, step: int) -> None:
        from safetensors.torch import save_file

        save_file(_state(context.seed(step), pieces=8), place)


class Script(Writer):
    """A training script's own: torch.save of weights, optimiser and scheduler. Only quiet tells, at first."""

    name = "torch.save"
    withstands = 4.0
    cases = ("ordinary", "overwritten", "rotation", "crash")

    def path(self, step: int) -> str:
        return f"step_{step}"

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch

        place.mkdir(exist_ok=True)
        state = _state(context.seed(step))
        torch.save(state, place / "model.pt")
        torch.save({"state": {n: {"exp_avg": t * 0.1} for n, t in enumerate(state.values())}}, place / "optimizer.pt")
        torch.save({"last_epoch": context.seed(step)}, place / "scheduler.pt")


class SavePretrained(Writer):
    """transformers' ``save_pretrained``: into one file, or into shards."""

    def __init__(self, sharded: bool) -> None:
        self.name = "save_pretrained, sharded" if sharded else "save_pretrained"
        self._sharded = sharded
        self.markers = ("model.safetensors.index.json",) if sharded else ()
        if not sharded:
            self.cases = ("ordinary", "overwritten", "rotation", "crash")

    def prepare(self) -> None:
        self.model = _llama()

    def save(self, context: Context, place: Path, step: int) -> None:
        _fill(self.model, context.seed(step))
        self.model.config.bos_token_id = step  # also the configuration differs from save to save
        self.model.save_pretrained(place, **({"max_shard_size": "150KB"} if self._sharded else {}))


class Trainer(Writer):
    """transformers' ``Trainer``, with optimiser, scheduler and random states, and its own rotation."""

    name = "Trainer"
    withstands = 4.0  # of its first checkpoint only quiet tells, until training_args.bin follows the model
    markers = ("trainer_state.json",)

    def prepare(self) -> None:
        self.model = _llama()

    def session(self, context: Context, steps: Iterable[int], keep: int = 0) -> None:
        import torch
        from transformers import Trainer as Real
        from transformers import TrainerCallback, TrainingArguments, set_seed

        path, last = self.path, max(steps)

        class Tell(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                context.begin(path(state.global_step))

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                context.done(path(state.global_step))
                time.sleep(0.3)

        set_seed(context.seed(0) - context.rank)
        _fill(self.model, context.seed(0) - context.rank)
        data = [{"input_ids": torch.arange(n, n + 16), "labels": torch.arange(n, n + 16)} for n in range(64)]
        arguments = TrainingArguments(
            str(context.root), max_steps=last, save_steps=1, save_strategy="steps", per_device_train_batch_size=1,
            report_to=[], disable_tqdm=True, use_cpu=True, save_total_limit=keep or None, learning_rate=1e-2,
            dataloader_pin_memory=False, logging_strategy="no", seed=context.salt + 1,
        )  # fmt: skip
        Real(self.model, arguments, train_dataset=data, callbacks=[Tell()]).train()


class Accelerate(Writer):
    """accelerate's ``save_state``."""

    name = "accelerate"
    withstands = 4.0  # of its first checkpoint only quiet tells, until optimizer.bin follows the model
    markers = ("random_states_0.pkl",)

    def path(self, step: int) -> str:
        return f"state_{step}"

    def prepare(self) -> None:
        import accelerate  # noqa: F401

        self.model = _llama()

    def start(self, context: Context) -> None:
        import torch
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        self.prepared = self.accelerator.prepare(self.model, optimizer, scheduler)
        if context.ranks > 1:
            context.barrier = self.accelerator.wait_for_everyone

    def save(self, context: Context, place: Path, step: int) -> None:
        import torch

        model, optimizer, scheduler = self.prepared
        _fill(self.model, context.seed(step) - context.rank)
        model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
        optimizer.step()
        scheduler.step()
        self.accelerator.save_state(str(place))


class Lightning(Writer):
    """Lightning's ``Trainer``: one file for each checkpoint, and ``last.ckpt``."""

    name = "Lightning"
    paths = ("lightning",)
    cases = ("ordinary", "overwritten", "rotation", "crash")
    strategy: Any = "auto"

    def prepare(self) -> None:
        import logging
        import warnings

        import pytorch_lightning

        warnings.filterwarnings("ignore")
        for name in ("pytorch_lightning", "lightning", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.library = pytorch_lightning

    def path(self, step: int) -> str:
        return f"epoch=0-step={step}.ckpt"

    def session(self, context: Context, steps: Iterable[int], keep: int = 0) -> None:
        import os

        import torch
        from pytorch_lightning.callbacks import ModelCheckpoint

        library = self.library

        class Trainer(library.Trainer):  # type: ignore[name-defined, misc]
            def save_checkpoint(self, filepath: Any, *args: Any, **more: Any) -> None:
                path = os.path.relpath(filepath, context.root)
                context.begin(path)
                super().save_checkpoint(filepath, *args, **more)
                context.done(path)
                time.sleep(0.2)

        class Module(library.LightningModule):  # type: ignore[name-defined, misc]
            def configure_model(self) -> None:
                if not hasattr(self, "layer"):
                    torch.manual_seed(context.seed(0))
                    self.layer = torch.nn.Linear(256, 256)

            def training_step(self, batch: Any, index: int) -> Any:
                return self.layer(batch).pow(2).mean()

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters())

            def train_dataloader(self) -> Any:
                return torch.utils.data.DataLoader(torch.randn(64, 256), batch_size=1)

        # Without a metric it keeps all or the last; rotation is Lightning's own, by a metric that falls.
        limit = {"monitor": "step", "mode": "max", "save_top_k": keep} if keep else {"save_top_k": -1}
        callback = ModelCheckpoint(
            dirpath=str(context.root), every_n_train_steps=1, save_last=True, enable_version_counter=False, **limit
        )
        trainer = Trainer(
            max_steps=max(steps), accelerator="cpu", devices=1, strategy=self.make_strategy(), logger=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
            default_root_dir=str(context.root),
        )  # fmt: skip
        trainer.fit(Module())
        context.sweep()

    def make_strategy(self) -> Any:
        return "auto"


class LightningSharded(Lightning):
    """Lightning's ``ModelParallelStrategy``: a folder for each checkpoint, ``meta.pt`` last."""

    name = "Lightning, sharded"
    cases = ("ordinary", "overwritten", "rotation", "crash", "lies")
    markers = (".metadata", "meta.pt")

    def start(self, context: Context) -> None:
        import os

        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(context.port), GLOO_SOCKET_IFNAME="lo")

    def make_strategy(self) -> Any:
        from pytorch_lightning.strategies import ModelParallelStrategy

        return ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")


class Orbax(Writer):
    """Orbax's ``CheckpointManager``, with its own rotation."""

    name = "Orbax"
    paths = ("orbax",)
    large = True
    commit = "commit_success.txt"
    cases = ("ordinary", "rotation", "crash")

    def prepare(self) -> None:
        import orbax.checkpoint

        self.library = orbax.checkpoint

    def path(self, step: int) -> str:
        return f"run/{step}"

    def session(self, context: Context, steps: Iterable[int], keep: int = 0) -> None:
        import numpy as np

        ocp = self.library
        options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, enable_async_checkpointing=False)
        with ocp.CheckpointManager(context.root / "run", options=options) as manager:
            for step in steps:
                generator = np.random.default_rng(context.seed(step))
                state = {f"w{n}": generator.standard_normal((128, 128), dtype=np.float32) for n in range(4)}
                if step in manager.all_steps():
                    continue
                context.begin(self.path(step))
                manager.save(step, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
                context.done(self.path(step))
                time.sleep(0.3)


class OrbaxReplayed(Writer):
    """What Orbax 0.12.8 does to the file system, in the order that strace shows, without half a gigabyte of JAX."""

    name = "Orbax, replayed"
    cases = ("ordinary", "rotation", "crash")

    def path(self, step: int) -> str:
        return f"run/{step}"

    def save(self, context: Context, place: Path, step: int) -> None:
        import numpy as np

        generator = np.random.default_rng(context.seed(step))
        under_way = place.with_name(f"{step}.orbax-checkpoint-tmp")
        shutil.rmtree(under_way, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        item = under_way / "default.orbax-checkpoint-tmp"
        own = item / "ocdbt.process_0"
        (own / "d").mkdir(parents=True)
        metadata = under_way / "_CHECKPOINT_METADATA"
        metadata.write_text('{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": null}')
        for number in range(4):
            (own / "d" / f"{number:032x}").write_bytes(generator.bytes(40_000))
            (own / "manifest.ocdbt.__lock").write_bytes(b"manifest %d" % number)
            (own / "manifest.ocdbt.__lock").rename(own / "manifest.ocdbt")
        (item / "_METADATA").write_text("{}")
        (item / "d").mkdir()
        (item / "d" / f"{9:032x}").write_bytes(generator.bytes(1000))
        (item / "manifest.ocdbt").write_bytes(b"manifest")
        (item / "commit_success.txt").write_text("Checkpoint commit was successful")
        item.rename(under_way / "default")
        metadata.write_text('{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": 2}')
        (under_way / "commit_success.txt").write_text("Checkpoint commit was successful")
        under_way.rename(place)


def _state(seed: int, pieces: int = 4) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{n}.weight": torch.randn(128, 128, generator=generator) for n in range(pieces)}


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2, vocab_size=256
    )
    return LlamaForCausalLM(config)


def _fill(model: Any, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


WRITERS: list[Writer] = [
    *(Safetensors(version) for version in ("0.5.3", "0.7.0", "0.8.0rc0", "0.8.0")),
    Script(),
    SavePretrained(sharded=False),
    SavePretrained(sharded=True),
    Trainer(),
    Accelerate(),
    Lightning(),
    LightningSharded(),
    Orbax(),
    OrbaxReplayed(),
]
