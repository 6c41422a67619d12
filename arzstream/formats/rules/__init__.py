"""One small rule per way of writing; see ``checkpoint`` for how they are put together."""

from __future__ import annotations

from arzstream.formats.evidence import Rule
from arzstream.formats.rules import deepspeed, distributed, general, hugging_face, megatron, orbax

__all__ = ["FALLBACK", "RULES"]

RULES: tuple[Rule, ...] = (
    Rule("archived", general.deleted),
    Rule("orbax", orbax.orbax),
    Rule("trainer", hugging_face.trainer),
    Rule("deepspeed", deepspeed.deepspeed),
    Rule("megatron", megatron.megatron),
    Rule("lightning", distributed.lightning),
    Rule("accelerate", hugging_face.accelerate),
    Rule("distributed checkpoint", distributed.distributed),
    Rule("sharded", hugging_face.sharded),
    Rule("written again", general.written_again),
    Rule("as before", general.as_before),
)
"""In order of precedence."""

FALLBACK: tuple[Rule, ...] = (
    Rule("single file", general.single_file),
    Rule("folder", general.any_folder),
)
"""Where none of :data:`RULES` applies; the last one always does."""
