"""One small rule per way of writing; see ``checkpoint`` for how they are put together."""

from __future__ import annotations

from arzstream.formats.evidence import Rule
from arzstream.formats.rules import general, hugging_face
from arzstream.formats.rules.deepspeed import deepspeed
from arzstream.formats.rules.distributed import distributed, lightning, megatron
from arzstream.formats.rules.orbax import orbax

__all__ = ["FALLBACK", "RULES"]

RULES: tuple[Rule, ...] = (
    Rule("archived", general.deleted),
    Rule("orbax", orbax),
    Rule("trainer", hugging_face.trainer),
    Rule("deepspeed", deepspeed),
    Rule("megatron", megatron),
    Rule("lightning", lightning),
    Rule("accelerate", hugging_face.accelerate),
    Rule("distributed checkpoint", distributed),
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
