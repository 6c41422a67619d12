"""Drop-ins for ``safetensors.torch``: :func:`load_file` and :func:`save_file`."""

from __future__ import annotations

import os
from typing import Any

import torch

from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.output import new_archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.saving import MemorySource, NamedBytes, safetensors_header, tensor_order
from arzstream.archive.summary import PackSummary
from arzstream.codec.dtypes import DTYPES

__all__ = ["load_file", "save_file"]

MEMBER = b"model.safetensors"
"""What ``arzstream unpack`` calls the file that :func:`save_file` stands for."""


def load_file(filename: str | os.PathLike[str], device: str | int = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of an archive, by name."""
    with open_archive(filename) as archive:
        return {name: tensor if str(device) == "cpu" else tensor.to(device) for name, tensor in archive.stream()}


def save_file(
    tensors: dict[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    *,
    profile: str = "balanced",
    jobs: int | None = None,
) -> PackSummary:
    """Write ``tensors`` to an archive that unpacks to a safetensors file; ``filename`` is replaced, as safetensors
    does.

    The archive appears only when it was read back and found identical. Tensors that are not contiguous, or share
    memory, are written out whole. Raises ValueError for a tensor that has no dense bytes and for a name that cannot be
    one, TypeError for names or metadata that are not text.
    """
    _check_text(tensors, metadata)
    arrays = {name: _bytes_of(name, tensor) for name, tensor in tensors.items()}
    listed = tensor_order(
        [
            NamedBytes(name, _dtype_name(tensor), tuple(tensor.shape), arrays[name].nbytes)
            for name, tensor in tensors.items()
        ]
    )
    source = MemorySource([safetensors_header(listed, metadata), *(arrays[tensor.name] for tensor in listed)])
    with (
        new_archive(os.fspath(filename), replace=True, mode=0o666) as (sink, reader),
        CheckpointBuilder(sink, profile=profile, jobs=jobs or os.cpu_count() or 1) as builder,
    ):
        job = builder.add_file(MEMBER, source)
        builder.plan(job, source.size, final=True)
        builder.finish(job, size=source.size, mode=0o644, mtime=0)
        if job.layout is None or job.layout.format != "safetensors" or job.layout.note:
            raise ValueError(f"these tensors cannot be saved: {job.layout.note if job.layout else 'no layout'}")
        summary = builder.seal()
        builder.verify_written(reader)
    return summary


def _dtype_name(tensor: torch.Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    for kind in DTYPES.values():
        if kind.torch == name:
            return kind.name
    raise ValueError(f"tensors of dtype {tensor.dtype} cannot be saved")


def _check_text(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    texts = [*tensors, *(metadata or {}), *(metadata or {}).values()]
    wrong: Any = next((text for text in texts if type(text) is not str), None)
    if wrong is not None:
        raise TypeError(f"names and metadata are text, but {wrong!r} is a {type(wrong).__name__}")
    if "__metadata__" in tensors:
        raise ValueError("no tensor can be called '__metadata__'")


def _bytes_of(name: str, tensor: torch.Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order."""
    if not isinstance(tensor, torch.Tensor):  # type: ignore[redundant-expr,unused-ignore]
        raise ValueError(f"{name!r} is no tensor but a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"{name!r} is not a dense tensor; make it one before saving")
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # a single element may have any stride and is contiguous all the same
    return flat.view(torch.uint8).numpy().data
