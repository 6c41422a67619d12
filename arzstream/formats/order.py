"""Which layer a tensor belongs to, and the order of layers.

The layer of a tensor, by its name split at the dots:

1. Optimiser state (``state.7.exp_avg``, ``optimizer.state.7.exp_avg``): ``optimizer.state.7``.
2. Otherwise, if a part is a number: everything up to and with the first number. ``model.layers.3.mlp.up.weight``
   belongs to ``model.layers.3``, ``layer1.0.conv1.weight`` to ``layer1.0``.
3. Otherwise, if a part names an embedding: everything up to and with that part. ``bert.embeddings.LayerNorm.weight``
   belongs to ``bert.embeddings``.
4. Otherwise the module that holds it, at most three parts of its name: ``model.norm.weight`` belongs to ``model.norm``.

Layers come in the order in which a model uses them, as far as names tell: embeddings, numbered layers (natural order,
so that 10 comes after 2, and encoders before decoders), final norms and heads, everything else, optimiser state, and
last the bytes that are no tensor (layer ``""``).
"""

from __future__ import annotations

import itertools
import re

__all__ = ["LayerKey", "layer_key", "layer_of"]

LayerKey = tuple[int, tuple[tuple[int, tuple[tuple[int, int, str], ...]], ...], str]

_EMBEDDING = re.compile(
    r"^(.*embed.*|token_embd|wte|wpe|tok_emb.*|pos_emb.*|emb|shared|stem|conv_stem|conv[12]|bn1|cls_token|class_token|dist_token|register_tokens"
    r"|pos_encoding|rotary.*|relative_attention_bias)$",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"^(.*norm|ln_f|ln_post|ln_final|.*_head|head|heads|classifier|classification_head|score|pooler|fc|fc_out|cls|output|out"
    r"|embed_out|proj_out|conv_out|logit_scale|logit_bias|.*_projection)$",
    re.IGNORECASE,
)
_OPTIMIZER = re.compile(r"^optim", re.IGNORECASE)
_PARTS = 3

_EMBEDDINGS, _NUMBERED, _FINAL, _OTHER, _OPTIMIZERS, _LITERALS = range(6)


def layer_of(name: str) -> str:
    """The layer that the tensor called ``name`` belongs to. Pure text: any string gives an answer."""
    parts = name.split(".")
    optimizer = _optimizer_layer(parts)
    if optimizer:
        return optimizer
    return _model_layer(parts)


def layer_key(layer: str) -> LayerKey:
    """Sort key of a layer name as :func:`layer_of` gives it; no two layers have the same."""
    return _rank(layer), tuple(_part_key(part) for part in layer.split(".")), layer


def _optimizer_layer(parts: list[str]) -> str:
    """``optimizer.state.7``, or empty if this is no optimiser's tensor."""
    prefix = next((i + 1 for i, part in enumerate(parts[:-1]) if _OPTIMIZER.match(part)), 0)
    if "state" in parts[prefix:-2] and (prefix or parts[0] == "state"):
        at = parts.index("state", prefix)
        owner = ".".join(parts[:at]) or "optimizer"
        slot = parts[at + 1 :]
        return f"{owner}.state.{slot[0] if _is_number(slot[0]) else _model_layer(slot)}"
    return ".".join(parts[:prefix])


def _model_layer(parts: list[str]) -> str:
    for i, part in enumerate(parts):
        if _is_number(part) and i < len(parts) - 1:
            return ".".join(parts[: i + 1])
    for i, part in enumerate(parts):
        if _EMBEDDING.match(part) and not _HEAD.match(part):
            return ".".join(parts[: i + 1])
    module = parts[:-1] or parts
    return ".".join(module[:_PARTS])


def _rank(layer: str) -> int:
    if not layer:
        return _LITERALS
    parts = layer.split(".")
    if any(_OPTIMIZER.match(part) for part in parts):
        return _OPTIMIZERS
    named = list(itertools.takewhile(lambda part: not _is_number(part), parts))
    if any(_HEAD.match(part) for part in named):
        return _FINAL
    if any(_EMBEDDING.match(part) for part in named):
        return _EMBEDDINGS
    return _NUMBERED if len(named) < len(parts) else _OTHER


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _part_key(part: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    order = 0 if part.startswith("encoder") else 2 if part.startswith("decoder") else 1
    tokens = re.findall(r"[0-9]+|[^0-9]+", part)
    # A run of digits sorts by its value: by length without leading zeros, then as text (int() would be slow on a
    # hostile name).
    return order, tuple(_token_key(token) for token in tokens)


def _token_key(token: str) -> tuple[int, int, str]:
    if "0" <= token[0] <= "9":
        digits = token.lstrip("0")
        return 0, len(digits), digits
    return 1, 0, token
