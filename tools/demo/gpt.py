"""A small GPT, and the text it learns: enough for checkpoints that are a real model's."""

from __future__ import annotations

import dataclasses
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the model. ``vocabulary`` is 256 for one token per byte, or that of ``tools.demo.subwords``."""

    layers: int = 6
    width: int = 512
    heads: int = 8
    context: int = 128
    vocabulary: int = 256


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.attn_norm, self.mlp_norm = nn.RMSNorm(c.width, eps=1e-5), nn.RMSNorm(c.width, eps=1e-5)
        self.qkv_proj, self.o_proj = (
            nn.Linear(c.width, 3 * c.width, bias=False),
            nn.Linear(c.width, c.width, bias=False),
        )
        self.up_proj, self.down_proj = nn.Linear(c.width, 4 * c.width), nn.Linear(4 * c.width, c.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv_proj(self.attn_norm(x)).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x))))


class GPT(nn.Module):
    """Decoder-only transformer. ``forward`` takes tokens (batch, length) int64 and gives logits (batch, length,
    vocabulary)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(c.vocabulary, c.width), nn.Embedding(c.context, c.width)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm, self.lm_head = nn.RMSNorm(c.width, eps=1e-5), nn.Linear(c.width, c.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * c.layers) ** 0.5 if deep else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        for block in self.layers:
            x = block(x)
        return self.lm_head(self.norm(x))


def corpus(limit: int = 4 << 20) -> Tensor:
    """Up to ``limit`` bytes of Python, this project's own source first, then the standard library: a uint8 tensor."""
    here = Path(__file__).resolve().parents[2] / "arzstream"
    text = bytearray()
    for root in (here, Path(sysconfig.get_path("stdlib"))):
        for path in sorted(root.rglob("*.py")) if root == here else sorted(root.glob("*.py")):
            text += path.read_bytes()
            if len(text) >= limit:
                break
    return torch.frombuffer(text, dtype=torch.uint8)[:limit]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by step: up to ``peak`` over ``warmup`` steps, then constant; with ``steps``, then down along half
    a cosine, to a tenth of the peak at that step."""

    peak: float = 6e-4
    warmup: int = 10
    steps: int | None = None

    def factor(self, step: int) -> float:
        """What the peak is multiplied by at ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        if self.steps is None or step < self.warmup:
            return rise
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


class Trainer:
    """AdamW on random windows of a text: fp32 master weights, saved as bf16.

    ``text`` is a one-dimensional tensor of tokens below ``config.vocabulary``, the corpus's bytes by default. The model
    begins with the same weights on every ``device``.
    """

    def __init__(
        self,
        config: Config,
        *,
        batch: int = 8,
        seed: int = 0,
        schedule: Schedule | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        text: Tensor | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(seed)
        schedule = schedule or Schedule()
        self.config, self.batch, self.device, self.step = config, batch, device, 0
        self.model, self.text = GPT(config).to(device), corpus() if text is None else text
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=schedule.peak, betas=betas, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule.factor)
        self._rng = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def hold(self, rate: float) -> None:
        """From the next step on, a constant learning rate."""
        self.scheduler.base_lrs, self.scheduler.lr_lambdas = [rate], [lambda step: 1.0]
        self.optimizer.param_groups[0]["lr"] = rate

    def windows(self) -> Tensor:
        """A batch of windows (batch, context + 1), int64, on the device."""
        starts = torch.randint(len(self.text) - self.config.context - 1, (self.batch,), generator=self._rng)
        batch = torch.stack([self.text[s : s + self.config.context + 1] for s in starts.tolist()])
        return batch.long().to(self.device)

    def train(self, steps: int) -> float:
        """Run ``steps`` steps; the mean loss of the last five, in nats per token."""
        for _ in range(steps):
            tokens = self.windows()
            logits = self.model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            self.losses.append(loss.item())
        return sum(self.losses[-5:]) / len(self.losses[-5:])
