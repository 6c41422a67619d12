"""Networks that see more than one weight's numbers: a GRU over the checkpoints, a causal Transformer over the row.

GRU: Cho et al., arXiv:1406.1078. Transformer: Vaswani et al., arXiv:1706.03762, here as a model of the tokens of a row,
each weight seeing its own inputs and the tokens of the weights on its left.
"""

from __future__ import annotations

import time
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.study.checkpoints import Run
from tools.study.neural import BATCH, Known, batches, bits_of, measure, parameters, perceptron, train
from tools.study.sample import WINDOW, Sample
from tools.study.scores import Result

__all__ = ["gru", "transformer"]


class _OverCheckpoints(nn.Module):
    """A GRU reads each past change of a weight, oldest first; its state joins the weight's inputs."""

    def __init__(self, inputs: int, hidden: int, alphabet: int) -> None:
        super().__init__()
        self.past = nn.GRU(3, hidden, batch_first=True)
        self.head = perceptron(inputs + hidden, 2 * hidden, alphabet)

    def forward(self, inputs: Tensor, history: Tensor) -> Tensor:
        state = self.past(history)[1][0]
        return cast(Tensor, self.head(torch.cat([inputs, state], -1)))


def gru(
    run: Run, sample: Sample, names: tuple[str, ...], hidden: tuple[int, ...], steps: int, seed: int
) -> list[Result]:
    """Per weight over time; nothing if the run has no change before this one."""
    if not sample.history.shape[2]:
        return []
    known, results = Known.of(sample, names), []
    past, held_past = (torch.from_numpy(side(sample.history)) / 4 for side in (sample.learned, sample.scored))
    for width in hidden:
        torch.manual_seed(seed)
        net = _OverCheckpoints(len(names), width, sample.alphabet)

        def loss_of(at: Tensor, net: nn.Module = net) -> Tensor:
            return F.cross_entropy(net(known.inputs[at], past[at]), known.tokens[at])

        began = time.process_time()
        train(net, loss_of, batches(len(known.tokens), steps, BATCH, seed), steps, 8e-3)
        seconds = time.process_time() - began
        with torch.no_grad():
            bits = bits_of(net(known.held_inputs, held_past), known.held_tokens)
            cost = measure(lambda net=net: F.softmax(net(known.held_inputs, held_past), -1), len(held_past))
        title = f"GRU over {past.shape[1]} past changes, hidden {width}"
        model = 16 * parameters(net) / run.weights
        results.append(Result(title, bits, sample.scale_bits, model, seconds, cost, "torch, fp32, a distribution each"))
    return results


class _OverRow(nn.Module):
    """Layers of causal attention over a window of a row."""

    def __init__(self, inputs: int, width: int, layers: int, heads: int, alphabet: int) -> None:
        super().__init__()
        self.enter, self.before = nn.Linear(inputs, width), nn.Embedding(alphabet + 1, width)
        self.places = nn.Parameter(torch.zeros(WINDOW, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.leave = perceptron(width, width, alphabet)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(WINDOW), persistent=False)

    def forward(self, inputs: Tensor, tokens: Tensor) -> Tensor:
        """``inputs`` (batch, WINDOW, inputs), ``tokens`` (batch, WINDOW): logits, of which those of a place depend on
        the tokens to its left alone."""
        left = F.pad(tokens[:, :-1] + 1, (1, 0))
        x = self.enter(inputs) + self.before(left) + self.places
        return cast(Tensor, self.leave(self.layers(x, mask=self.mask, is_causal=True)))


def transformer(
    run: Run, sample: Sample, names: tuple[str, ...], width: int, layers: int, steps: int, seed: int
) -> Result:
    """Of the row on the left, and of ``names``, which may hold what the rows above tell."""
    known = Known.of(sample, names)
    inputs, tokens, held_inputs, held_tokens = (
        x.reshape(-1, WINDOW, *x.shape[1:]) for x in (known.inputs, known.tokens, known.held_inputs, known.held_tokens)
    )
    torch.manual_seed(seed)
    net = _OverRow(len(names), width, layers, 4, sample.alphabet)

    def loss_of(at: Tensor) -> Tensor:
        return F.cross_entropy(net(inputs[at], tokens[at]).flatten(0, 1), tokens[at].flatten())

    began = time.process_time()
    train(net, loss_of, batches(len(tokens), steps, BATCH // WINDOW, seed), steps, 4e-3)
    seconds = time.process_time() - began
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(x, y) for x, y in zip(held_inputs.split(32), held_tokens.split(32), strict=True)])
        bits = bits_of(logits, held_tokens)
        some = min(256, len(held_tokens))
        cost = measure(lambda: F.softmax(net(held_inputs[:some], held_tokens[:some]), -1), some * WINDOW)
    title = f"causal Transformer over the row, {layers} × {width}, rows above"
    how = "torch, fp32, all places at once: a decoder has them one after the other"
    return Result(title, bits, sample.scale_bits, 16 * parameters(net) / run.weights, seconds, cost, how)
