"""``arzstream.transformers.from_pretrained(url)``: models out of archives, with transformers."""

from __future__ import annotations

from arzstream.integrations.transformers import config_from, from_pretrained, processor_from, tokenizer_from

__all__ = ["config_from", "from_pretrained", "processor_from", "tokenizer_from"]
