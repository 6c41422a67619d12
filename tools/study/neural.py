"""Networks that see one weight at a time: a linear index, the teacher, its prototypes, and students that emit a class.

Training classes end to end collapses to a few of them. So a teacher learns the distribution of tokens, its predictions
are clustered into prototypes, a small student first learns to name a weight's prototype and then to make the code
short; at last it is rounded, and the tables are counted with the rounded one.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tools.study.changes import raw_bits
from tools.study.checkpoints import Run
from tools.study.sample import Sample
from tools.study.scores import Result, Tables, kl_clusters

__all__ = ["Known", "Teacher", "batches", "clusters", "linear", "measure", "perceptron", "students", "train"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
BATCH = 2048


@dataclasses.dataclass(frozen=True)
class Known:
    """Inputs of single weights, to mean 0 and variance 1, and their tokens: what is learned from and what is scored."""

    inputs: Tensor
    tokens: Tensor
    held_inputs: Tensor
    held_tokens: Tensor

    @classmethod
    def of(cls, sample: Sample, names: tuple[str, ...]) -> Known:
        columns = sample.columns(names)
        inputs, held = (side(sample.inputs)[:, columns] for side in (sample.learned, sample.scored))
        mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
        parts = (inputs - mean) / spread, sample.learned(sample.tokens), (held - mean) / spread
        return cls(*(torch.from_numpy(p) for p in (*parts, sample.scored(sample.tokens))))


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def batches(n: int, steps: int, size: int, seed: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(n, (min(size, n),), generator=rng)


def train(
    net: nn.Module, loss_of: Callable[[Tensor], Tensor], picks: Iterator[Tensor], steps: int, rate: float
) -> None:
    """Adam under a one-cycle schedule; ``loss_of`` is given each batch's indices."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(2, steps))
    for pick in picks:
        loss = loss_of(pick)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def measure(run: Callable[[], object], weights: int) -> float:
    """Nanoseconds of the processor for each of ``weights``: the shorter of two runs."""
    found = []
    for _ in range(2):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return 1e9 * min(found) / weights


def bits_of(logits: Tensor, tokens: Tensor) -> float:
    """Bits per weight, raw ones included."""
    nats = F.cross_entropy(logits.flatten(0, -2), tokens.flatten()).item()
    return nats / float(np.log(2)) + float(raw_bits(tokens.numpy()).mean())


@dataclasses.dataclass
class Teacher:
    """A softmax network over tokens, trained."""

    net: nn.Module
    known: Known
    seconds: float

    @classmethod
    def learned(
        cls, sample: Sample, names: tuple[str, ...], hidden: tuple[int, ...], steps: int, seed: int, bottleneck: int = 0
    ) -> Teacher:
        """``bottleneck``: width of a linear layer before the hidden ones, or none."""
        known = Known.of(sample, names)
        torch.manual_seed(seed)
        widths = (len(names), *hidden, sample.alphabet)
        net = perceptron(*widths)
        if bottleneck:
            net = nn.Sequential(nn.Linear(len(names), bottleneck), *perceptron(bottleneck, *widths[1:]))
        began = time.process_time()
        picks = batches(len(known.tokens), steps, BATCH, seed)
        train(net, lambda at: F.cross_entropy(net(known.inputs[at]), known.tokens[at]), picks, steps, 8e-3)
        return cls(net, known, time.process_time() - began)

    @torch.no_grad()
    def result(self, run: Run, sample: Sample, title: str) -> Result:
        known = self.known
        bits = bits_of(self.net(known.held_inputs), known.held_tokens)
        cost = measure(lambda: F.softmax(self.net(known.held_inputs), -1), len(known.held_tokens))
        model = 16 * parameters(self.net) / run.weights
        return Result(title, bits, sample.scale_bits, model, self.seconds, cost, "torch, fp32, a distribution each")

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> NDArray[np.float64]:
        probabilities: NDArray[np.float64] = F.softmax(self.net(inputs), -1).double().numpy()
        return probabilities


def linear(run: Run, sample: Sample, names: tuple[str, ...], steps: int, seed: int) -> list[Result]:
    """A linear index of the inputs, learned below a small network, and cut where it makes equally frequent classes."""
    teacher = Teacher.learned(sample, names, (32,), steps, seed, bottleneck=1)
    first, known = teacher.net[0], teacher.known
    results = []
    with torch.no_grad():
        index, held = (first(x).flatten().numpy() for x in (known.inputs, known.held_inputs))
    for n in (32, 128):
        edges = np.quantile(index, np.arange(1, n) / n)
        tables = Tables.learned(np.searchsorted(edges, index), known.tokens.numpy(), n, sample.alphabet)
        bits = tables.bits(np.searchsorted(edges, held), known.held_tokens.numpy())
        cost = measure(lambda edges=edges: np.searchsorted(edges, first(known.held_inputs).detach().numpy()), len(held))
        model = (8 * tables.bytes + 16 * parameters(first)) / run.weights
        title = f"linear autoregressive index, {n} classes"
        results.append(
            Result(title, bits, sample.scale_bits, model, teacher.seconds, cost, "torch and NumPy, class only")
        )
    return results


# ---- prototypes and students


def prototypes(teacher: Teacher, k: int, seed: int, most: int = 20000) -> NDArray[np.float64]:
    """Of the teacher's predictions on up to ``most`` weights, shape (k, tokens)."""
    step = max(1, len(teacher.known.inputs) // most)
    p = teacher.predict(teacher.known.inputs[::step])
    return kl_clusters(p, np.ones(len(p)), k, seed)


def nearest(teacher: Teacher, inputs: Tensor, centres: NDArray[np.float64]) -> I64:
    """The prototype by which each weight's predicted distribution is coded shortest."""
    lengths = -np.log2(centres + 1e-12).T.astype(np.float32)
    found = [teacher.predict(part).astype(np.float32) @ lengths for part in inputs.split(1 << 15)]
    return np.concatenate([part.argmin(axis=1) for part in found])


def clusters(run: Run, sample: Sample, teacher: Teacher, sizes: tuple[int, ...], seed: int) -> list[Result]:
    """The teacher's distributions replaced by one of a few tables."""
    known, results = teacher.known, []
    for k in sizes:
        began = time.process_time()
        centres = prototypes(teacher, k, seed)
        classes = nearest(teacher, known.inputs, centres)
        tables = Tables.learned(classes, known.tokens.numpy(), k, sample.alphabet)
        seconds = teacher.seconds + time.process_time() - began
        bits = tables.bits(nearest(teacher, known.held_inputs, centres), known.held_tokens.numpy())
        cost = measure(lambda c=centres: nearest(teacher, known.held_inputs, c), len(known.held_tokens))
        model = (8 * tables.bytes + 16 * parameters(teacher.net)) / run.weights
        title = f"the teacher's predictions in {k} classes"
        results.append(Result(title, bits, sample.scale_bits, model, seconds, cost, "torch and NumPy, class only"))
    return results


def _rounded(net: nn.Sequential, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """The network with weights, inputs and activations of 8 bits, in floats that hold them exactly."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    units, x = [], inputs
    for layer in layers:
        units.append(float(x.abs().quantile(0.9999)) / 127 if x.numel() < 1 << 24 else float(x.abs().max()) / 127)
        x = F.relu(layer(x))
    weights = []
    for layer in layers:
        unit = float(layer.weight.abs().max()) / 127
        weights.append((layer.weight / unit).round() * unit)

    def forward(x: Tensor) -> Tensor:
        for i, (layer, w, unit) in enumerate(zip(layers, weights, units, strict=True)):
            x = F.relu(x) if i else x
            x = F.linear((x / unit).round().clamp(-127, 127) * unit, w, layer.bias)
        return x

    return forward


def students(
    run: Run, sample: Sample, teacher: Teacher, hidden: list[tuple[int, ...]], k: int, steps: int, seed: int
) -> list[Result]:
    """Small networks that emit one of ``k`` classes, rounded to 8 bits."""
    centres, results = prototypes(teacher, k, seed), []
    known = teacher.known
    assigned = torch.from_numpy(nearest(teacher, known.inputs, centres))
    for widths in hidden:
        torch.manual_seed(seed)
        net = perceptron(known.inputs.shape[1], *widths, k)
        tables = nn.Parameter(torch.from_numpy(np.log(centres + 1e-5)).float())
        both = nn.ModuleList([net])
        both.register_parameter("tables", tables)
        done = 0

        def loss_of(at: Tensor, net: nn.Module = net, tables: Tensor = tables) -> Tensor:
            """Imitation for a third of the time, then the expected code length, while the choice hardens."""
            nonlocal done
            done += 1
            logits, progress = net(known.inputs[at]), done / steps
            if progress < 1 / 3:
                return F.cross_entropy(logits, assigned[at])
            odds = F.softmax(logits / (1.2 - progress), -1)
            return -(odds * F.log_softmax(tables, -1).T[known.tokens[at]]).sum(-1).mean()

        began = time.process_time()
        train(both, loss_of, batches(len(known.tokens), steps, BATCH, seed), steps, 8e-3)
        with torch.no_grad():
            rounded = _rounded(net, known.inputs[: 1 << 16])
            classes, held = (rounded(x).argmax(-1).numpy() for x in (known.inputs, known.held_inputs))
            counted = Tables.learned(classes, known.tokens.numpy(), k, sample.alphabet)
            seconds = teacher.seconds + time.process_time() - began
            cost = measure(lambda net=net: net(known.held_inputs).argmax(-1), len(held))
        model = 8 * (counted.bytes + parameters(net)) / run.weights
        title = f"student {'-'.join(map(str, widths)) or 'linear'}, 8-bit, {k} classes"
        bits = counted.bits(held, known.held_tokens.numpy())
        results.append(Result(title, bits, sample.scale_bits, model, seconds, cost, "torch, fp32, class only"))
    return results
