"""The state of every optimiser of torch, and of bitsandbytes', is known to be its parameters'."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import arzstream
from arzstream.archive.pairing import Held, parameters, parameters_of

Optimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


def plain(kind: type[Any], **options: Any) -> Optimizer:
    return lambda model: kind(model.parameters(), **options)


def decaying(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Matrices first, as transformers' Trainer groups them."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups)


OPTIMIZERS: dict[str, Optimizer] = {
    name: plain(getattr(torch.optim, name))
    for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD", "Rprop", "Adafactor")
} | {
    "Adam, amsgrad": plain(torch.optim.Adam, amsgrad=True),
    "AdamW, groups": decaying,
    "SGD, momentum": plain(torch.optim.SGD, lr=0.1, momentum=0.9),
    "RMSprop": plain(torch.optim.RMSprop),
    "RMSprop, centred, momentum": plain(torch.optim.RMSprop, momentum=0.9, centered=True),
}
ELSEWHERE = {"SparseAdam", "Muon", "LBFGS", "SGD", "Optimizer"}


def test_every_optimiser_of_torch_is_here() -> None:
    kinds = {name for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    assert kinds <= {name.partition(",")[0] for name in OPTIMIZERS} | ELSEWHERE


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict(self.layer()) for _ in range(3))
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def layer(self) -> dict[str, torch.nn.Module]:
        return {"q": torch.nn.Linear(6, 6), "k": torch.nn.Linear(6, 6), "norm": torch.nn.BatchNorm1d(6)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer["norm"](layer["k"](layer["q"](h)))
        return self.head(h)


def trained(make: Optimizer, model: torch.nn.Module | None = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Model() if model is None else model
    optimizer = make(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.arange(8)).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return model, optimizer


def truth(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    names = {id(p): name for name, p in model.named_parameters()}
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    return {number: names[id(p)] for number, p in enumerate(listed)}


def paired(folder: Path, tmp_path: Path) -> dict[str, str]:
    arzstream.pack(folder, tmp_path / "a.arz", force=True)
    with arzstream.open(tmp_path / "a.arz") as opened:
        return parameters_of(opened)


def state_of(found: dict[str, str], prefix: str = "") -> dict[int, str]:
    """Number → name; all parts of one number agree."""
    by_number: dict[int, set[str]] = {}
    for name, parameter in found.items():
        by_number.setdefault(int(name.removeprefix(prefix).split(".")[1]), set()).add(parameter)
    assert all(len(names) == 1 for names in by_number.values())
    return {number: names.pop() for number, names in by_number.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbered_state_is_paired_with_its_parameters(name: str, tmp_path: Path) -> None:
    """In one file with the model, and beside it in another one."""
    model, optimizer = trained(OPTIMIZERS[name])
    wanted = truth(model, optimizer)
    (tmp_path / "one").mkdir()
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, tmp_path / "one" / "last.pt")
    found = paired(tmp_path / "one", tmp_path)
    assert state_of(found, "optimizer.") == {n: f"model.{p}" for n, p in wanted.items()}
    (tmp_path / "two").mkdir()
    torch.save(optimizer.state_dict(), tmp_path / "two" / "optimizer.pt")
    torch.save(model.state_dict(), tmp_path / "two" / "pytorch_model.bin")
    found = paired(tmp_path / "two", tmp_path)
    assert state_of(found) == wanted
    tensors = sum(torch.is_tensor(t) for state in optimizer.state_dict()["state"].values() for t in state.values())
    assert len(found) == tensors


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_beside_safetensors_only_what_no_order_could_confuse_is_paired(name: str, tmp_path: Path) -> None:
    model, optimizer = trained(OPTIMIZERS[name])
    (tmp_path / "step").mkdir()
    torch.save(optimizer.state_dict(), tmp_path / "step" / "optimizer.pt")
    weights = {n: t for n, t in model.state_dict().items() if n != "head.weight"}
    save_file(weights, tmp_path / "step" / "model.safetensors")
    found, wanted = state_of(paired(tmp_path / "step", tmp_path)), truth(model, optimizer)
    assert found[0] == "embed.weight"
    assert found.items() <= wanted.items()


def test_muon_and_sparse_adam_are_paired(tmp_path: Path) -> None:
    embed = torch.nn.Sequential(torch.nn.Embedding(11, 6, sparse=True))
    matrices = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 5, bias=False))
    for model, make in ((embed, plain(torch.optim.SparseAdam)), (matrices, plain(torch.optim.Muon))):
        _, optimizer = trained(make, model)
        torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "a.pt")
        found = paired(tmp_path / "a.pt", tmp_path)
        assert state_of(found, "optim.") == {n: f"model.{p}" for n, p in truth(model, optimizer).items()}


def test_lbfgs_has_no_state_of_one_parameter(tmp_path: Path) -> None:
    model, optimizer = trained(plain(torch.optim.LBFGS))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    assert paired(tmp_path / "a.pt", tmp_path) == {}
    with arzstream.open(tmp_path / "a.arz") as opened:
        assert {"optimizer.state.0.d", "optimizer.state.0.old_dirs.0"} <= set(opened.keys())


def eight_bits(model: torch.nn.Module) -> dict[str, Any]:
    """As bitsandbytes' AdamW8bit keeps it: state of eight bits in blocks of 256 where there are 4096 elements, the maps
    shared by all."""
    maps = {"qmap1": torch.linspace(-1, 1, 256), "qmap2": torch.linspace(0, 1, 256)}
    state: dict[int, dict[str, Any]] = {}
    for number, p in enumerate(model.parameters()):
        kind = torch.uint8 if p.numel() >= 4096 else torch.float32
        state[number] = {
            "step": 7,
            "state1": torch.zeros_like(p, dtype=kind),
            "state2": torch.zeros_like(p, dtype=kind),
        }
        if kind == torch.uint8:
            blocks = -(-p.numel() // 256)
            state[number] |= {**maps, "absmax1": torch.rand(blocks), "absmax2": torch.rand(blocks)}
    return {"state": state, "param_groups": [{"params": list(range(len(state)))}]}


def test_the_eight_bit_state_of_bitsandbytes_is_paired(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(80, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 70))
    torch.save({"model": model.state_dict(), "optimizer": eight_bits(model)}, tmp_path / "a.pt")
    found = paired(tmp_path / "a.pt", tmp_path)
    names = {n: f"model.{name}" for n, (name, _) in enumerate(model.named_parameters())}
    assert state_of(found, "optimizer.") == names
    assert {"absmax1", "absmax2", "qmap1", "qmap2", "state1", "state2"} == {name.split(".")[-1] for name in found}
    arzstream.unpack(tmp_path / "a.arz", tmp_path / "back")
    assert (tmp_path / "back" / "a.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("flat", [False, True])
def test_state_that_is_keyed_by_names_is_paired(wrapper: str, flat: bool, tmp_path: Path) -> None:
    """As FSDP and torch.distributed.checkpoint.state_dict give it."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    wanted, state = truth(model, optimizer), optimizer.state_dict()["state"]
    named = {
        wrapper + wanted[n]: {slot: t.flatten() if flat and t.dim() else t for slot, t in slots.items()}
        for n, slots in state.items()
    }
    torch.save({"model": model.state_dict(), "optim": {"state": named, "param_groups": []}}, tmp_path / "a.pt")
    found = paired(tmp_path / "a.pt", tmp_path)
    assert found == {
        f"optim.state.{wrapper}{name}.{slot}": f"model.{name}"
        for name in wanted.values()
        for slot in ("exp_avg", "exp_avg_sq", "step")
    }


def test_shapes_that_do_not_agree_are_not_paired() -> None:
    weights = Held("torch-zip", [("a", (4, 5)), ("b", (5, 4)), ("c", (4, 5))])
    state = [("state.0.exp_avg", (4, 5)), ("state.1.exp_avg", (4, 5)), ("state.2.exp_avg", (7,))]
    assert parameters({"w": weights, "o": Held("torch-zip", state)}) == {}
    named = [("optim.state.a.exp_avg", (4, 6)), ("optim.state.b.exp_avg", (5, 4))]
    assert parameters({"w": weights, "o": Held("torch-zip", named)}) == {"optim.state.b.exp_avg": "b"}


def test_parameters_without_state_are_left_out() -> None:
    """Frozen ones keep their numbers."""
    weights = Held("torch-zip", [("a", (4, 5)), ("b", (5, 4)), ("c", (3,))])
    state = Held("torch-zip", [("state.0.exp_avg", (4, 5)), ("state.2.exp_avg", (3,))])
    assert parameters({"w": weights, "o": state}) == {"state.0.exp_avg": "a", "state.2.exp_avg": "c"}


def test_names_in_the_listing(tmp_path: Path) -> None:
    from arzstream.cli.listing import listing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer = trained(OPTIMIZERS["Adam"])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    arzstream.pack(tmp_path / "a.pt", tmp_path / "a.arz")
    with arzstream.open(tmp_path / "a.arz") as opened:
        shown = {tensor["name"]: tensor["parameter"] for tensor in listing(opened)["tensors"]}
    assert shown["optimizer.state.3.exp_avg"] == "model.layers.0.k.weight" and shown["model.embed.weight"] is None


def test_weights_in_shards_count_as_one_model(tmp_path: Path) -> None:
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    weights = list(model.state_dict().items())[:-1]  # the last one is tied
    torch.save(optimizer.state_dict(), (tmp_path / "optimizer.pt"))
    folder = tmp_path / "step"
    folder.mkdir()
    (tmp_path / "optimizer.pt").rename(folder / "optimizer.pt")
    for number, part in enumerate((weights[:9], weights[9:])):
        torch.save(dict(part), folder / f"pytorch_model-0000{number + 1}-of-00002.bin")
    assert state_of(paired(folder, tmp_path)) == truth(model, optimizer)


def test_a_great_many_models_and_optimisers_take_no_time() -> None:
    many = [(f"m{i}.w", (4,)) for i in range(20_000)]
    many += [(f"x{i}.state.{n}.exp_avg", (4,)) for i in range(10_000) for n in range(2)]
    begin = time.process_time()
    parameters({"a": Held("torch-zip", many), "b": Held("safetensors", many)})
    assert time.process_time() - begin < 20
