"""Made-up checkpoint folders for the rules of completeness."""

from __future__ import annotations

import io
import json
from typing import Any

import safetensors.torch
import torch

from arzstream.formats import evidence
from arzstream.formats.checkpoint import GIVE_UP, FileFacts, Past, Verdict, assess
from arzstream.formats.detect import parser_for

__all__ = ["NOW", "WEIGHTS", "Checkpoint", "changed", "doubted", "saved"]

WEIGHTS = safetensors.torch.save({"w": torch.ones(3)})
NOW = 10**18
"""Nanoseconds since 1970."""


def saved(value: Any) -> bytes:
    """What torch.save makes of it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(age: float) -> int:
    """When that was, for a file's age in seconds."""
    return NOW - int(age * 1e9)


class Checkpoint:
    """A made-up checkpoint folder. ``age``: seconds since a file's last change."""

    def __init__(self, **files: bytes) -> None:
        self.content: dict[bytes, bytes] = {}
        self.age: dict[bytes, float] = {}
        self.open: set[bytes] = set()
        self.past = Past()
        self.around: dict[bytes, tuple[bytes, int]] = {}

    def put(self, path: str, content: bytes = WEIGHTS, age: float = 1.0) -> Checkpoint:
        self.content[path.encode()] = content
        self.age[path.encode()] = age
        return self

    def json(self, path: str, value: Any, age: float = 1.0) -> Checkpoint:
        return self.put(path, json.dumps(value).encode(), age)

    def assess(self, name: str = "", later: float = 0.0) -> Verdict:
        entries = {}
        for path, content in self.content.items():

            def read(offset: int, length: int, content: bytes = content) -> bytes:
                return content[offset : offset + length]

            layout = parser_for(path).update(read, len(content), False)
            changed = 10**18 - int(self.age[path] * 1e9)
            entries[path] = FileFacts(len(content), layout, path not in self.open, self.age[path] + later, changed)
        read_at = lambda path, offset, length: self.content[path][offset : offset + length]  # noqa: E731
        small = {path: content for path, content in self.content.items() if len(content) <= evidence.SMALL_BYTES}
        return assess(entries, small.get, name.encode(), past=self.past, beside=self.around.get, read=read_at)


def doubted(checkpoint: Checkpoint, name: str, waiting_for: str) -> bool:
    """It waits for that, as long as for a broken file, and then it is complete."""
    verdict = checkpoint.assess(name)
    assert verdict.waiting_for == waiting_for and verdict.doubt and not verdict.complete
    assert not checkpoint.assess(name, later=GIVE_UP - 10).complete
    return checkpoint.assess(name, later=GIVE_UP).complete
