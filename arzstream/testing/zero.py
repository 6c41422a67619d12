"""Folders laid out as DeepSpeed writes them, by ``torch.save``, without DeepSpeed: for tests.

After engine.py, runtime/zero/stage_1_and_2.py, stage3.py and bf16_optimizer.py of DeepSpeed: the weights of the first
rank in ``mp_rank_00_model_states.pt``, and each rank's partition of the flattened fp32 weights and moments.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_zero"]

ALIGNMENT = 8


def write_zero(
    folder: Path,
    parameters: Mapping[str, Any],
    state: Mapping[str, Mapping[str, Any]],
    *,
    ranks: int,
    stage: int = 2,
    bf16: bool = True,
    mappings: bool = True,
) -> None:
    """``folder/global_step1`` and ``folder/latest``. ``parameters``: fp32 tensors; ``state``: for ``exp_avg`` and
    ``exp_avg_sq``, tensors by parameter, of the parameter's shape. Stage 3 puts every parameter into a group with the
    one after it."""  # fmt: skip
    import torch

    place = folder / "global_step1"
    place.mkdir(parents=True)
    shapes = OrderedDict((name, tensor.shape) for name, tensor in parameters.items())
    model: dict[str, Any] = {
        "module": OrderedDict((name, tensor.bfloat16()) for name, tensor in parameters.items()),
        "param_shapes": [shapes], "buffer_names": [], "shared_params": {}, "global_steps": 1, "ds_version": "0.18.2",
        "ds_config": {"train_batch_size": ranks},
    }  # fmt: skip
    kinds = {"fp32": parameters, **state}
    with _fragment_class() as address:
        if stage < 3:
            torch.save(model, place / "mp_rank_00_model_states.pt")
        for rank in range(ranks):
            if stage == 3:
                torch.save(model, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
                body = _stage_3(kinds, rank, ranks)
            else:
                body = _stage_2(kinds, rank, ranks, address if mappings else None)
            name = f"{'bf16_' if bf16 else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            torch.save({"optimizer_state_dict": body, "ds_config": {}, "ds_version": "0.18.2"}, place / name)
    (folder / "latest").write_text("global_step1")


def _stage_2(kinds: Mapping[str, Mapping[str, Any]], rank: int, ranks: int, address: Any) -> dict[str, Any]:
    import torch

    total = sum(tensor.numel() for tensor in kinds["fp32"].values())
    size = -(-total // (ALIGNMENT * ranks)) * ALIGNMENT
    low, high = rank * size, (rank + 1) * size
    flat = {}
    for key, tensors in kinds.items():
        whole = torch.cat([tensor.flatten() for tensor in tensors.values()] + [torch.zeros(size * ranks - total)])
        flat[key] = whole[low : min(high, total) if key == "fp32" else high].clone()
    found: OrderedDict[str, Any] = OrderedDict()
    at = 0
    for name, tensor in kinds["fp32"].items():
        first, last = max(at, low), min(at + tensor.numel(), high)
        if first < last and address is not None:
            found[name] = address(numel=last - first, start=first - low)
        at += tensor.numel()
    return {
        "loss_scaler": None, "zero_stage": 2, "partition_count": [ranks], "group_paddings": [0],
        "base_optimizer_state": {
            "state": {0: {"step": torch.tensor(1.0), **{key: flat[key] for key in kinds if key != "fp32"}}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        },
        "single_partition_of_fp32_groups": [flat["fp32"]],
        **({"param_slice_mappings": [found]} if address is not None else {}),
    }  # fmt: skip


def _stage_3(kinds: Mapping[str, Mapping[str, Any]], rank: int, ranks: int) -> dict[str, Any]:
    import torch

    names = list(kinds["fp32"])
    groups = [names[i : i + 2] for i in range(0, len(names), 2)]

    def share(tensor: Any) -> Any:
        length = -(-tensor.numel() // ranks)
        filled = torch.cat([tensor.flatten(), torch.zeros(length * ranks - tensor.numel())])
        return filled[rank * length : (rank + 1) * length]

    flat = {key: [torch.cat([share(tensors[n]) for n in group]) for group in groups] for key, tensors in kinds.items()}
    return {
        "zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": flat["fp32"],
        "optimizer_state_dict": {
            "state": {
                i: {"step": 1, **{key: flat[key][i] for key in kinds if key != "fp32"}} for i in range(len(groups))
            },
            "param_groups": [],
        },
    }  # fmt: skip


@contextlib.contextmanager
def _fragment_class() -> Iterator[Any]:
    """``deepspeed.utils.tensor_fragment.fragment_address``, so that a pickle names it."""
    names = ["deepspeed", "deepspeed.utils", "deepspeed.utils.tensor_fragment"]
    before = {name: sys.modules.get(name) for name in names}

    class Address:
        def __init__(self, numel: int, start: int) -> None:
            self.numel, self.start = numel, start

    Address.__module__, Address.__qualname__, Address.__name__ = names[-1], "fragment_address", "fragment_address"
    try:
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        sys.modules[names[-1]].fragment_address = Address  # type: ignore[attr-defined]
        yield Address
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
