"""The demo's corpus in subwords: byte-level byte-pair encoding (Sennrich et al. 2016), as language models have it."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from tools.demo.gpt import corpus

__all__ = ["subwords"]

PIECE = 10_000
"""Characters that are handed to the tokenizer's trainer at a time."""


def subwords(vocabulary: int) -> Tensor:
    """The corpus as int64 tokens below ``vocabulary`` (at least 256), learned from the corpus itself; takes seconds,
    and gives the same tokens each time."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = bytes(corpus().numpy()).decode("utf-8", "replace")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator((text[at : at + PIECE] for at in range(0, len(text), PIECE)), trainer)
    return torch.tensor(tokenizer.encode(text).ids)
