"""The zip files of ``torch.export.save`` (``.pt2``): a program, and its tensors in records of their own.

``data/weights/<model>_weights_config.json`` and ``data/constants/<model>_constants_config.json`` say which record is
which tensor (``torch/export/pt2_archive``); tensors have the names that these give, with the model's before them where
there are several models. Tensors that are pickled, sample inputs, and the weights of archives of PyTorch before 2.8
are files of ``torch.save`` inside the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Malformed, Notes, ReadAt, Storage, View, shown, view_problem
from arzstream.formats.torch_storages import plain_strides
from arzstream.formats.zip_records import Record
from arzstream.limits import Limits

__all__ = ["Inner", "export_storages"]

Inner = Callable[[ReadAt, int], list[Storage]]
"""The storages of a file of ``torch.save``, of which there are so many bytes. Raises :class:`Malformed`."""

_CONFIGS = ((b"data/weights/", b"_weights_config.json"), (b"data/constants/", b"_constants_config.json"))
_FILES = {
    b"serialized_state_dict.pt": "",
    b"serialized_constants.pt": "constants",
    b"serialized_example_inputs.pt": "sample_inputs",
}
_SAMPLES = b"data/sample_inputs/"
_SCALAR_TYPES = {
    1: "U8", 2: "I8", 3: "I16", 4: "I32", 5: "I64", 6: "F16", 7: "F32", 8: "F64", 10: "C64", 11: "C128", 12: "BOOL",
    13: "BF16", 28: "U16", 29: "F8_E4M3", 30: "F8_E5M2", 31: "F8_E4M3FNUZ", 32: "F8_E5M2FNUZ", 33: "F8_E8M0",
    34: "U32", 35: "U64",
}  # fmt: skip
"""torch/_export/serde/schema.py; 9 is complex32, which is two halves."""
_COMPLEX_HALF = 9
_STRIDED = 7


def export_storages(
    read: ReadAt, records: Iterable[Record], inner: Inner, limits: Limits, notes: Notes
) -> list[Storage] | None:
    """The storages of an archive with these ``records``, in any order; None if it is none of ``torch.export``."""
    return _Archive(read, records, inner, limits, notes).storages()


class _Archive:
    def __init__(self, read: ReadAt, records: Iterable[Record], inner: Inner, limits: Limits, notes: Notes) -> None:
        self._read, self._inner, self._limits, self._notes = read, inner, limits, notes
        self._records = {record.name: record for record in records}
        self._files: dict[bytes, str] = {}
        """Records that are files of ``torch.save``: what their tensors are called, or begin with."""
        self._raw: dict[bytes, tuple[str, list[View]]] = {}
        """Records that are a storage: dtype and views."""

    def storages(self) -> list[Storage] | None:
        known = False
        for name in self._records:
            base = name.rpartition(b"/")[2]
            if base in _FILES:
                known = True
                self._files[name] = _FILES[base]
            elif name.partition(b"/")[2].startswith(_SAMPLES) and base.endswith(b".pt"):
                self._files[name] = "sample_inputs"
        for folder, ending in _CONFIGS:
            configs = [n for n in self._records if n.partition(b"/")[2].startswith(folder) and n.endswith(ending)]
            for name in configs:
                known = True
                place, _, base = name.rpartition(b"/")
                model = base[: -len(ending)].decode("utf-8", "replace") + "." if len(configs) > 1 else ""
                for tensor, entry in self._entries(self._records[name]).items():
                    self._place(model + tensor, entry, place + b"/")
        return self._found() if known else None

    def _entries(self, record: Record) -> dict[str, Any]:
        """A configuration's tensors, by name."""
        try:
            if record.method or record.size > self._limits.metadata_bytes:
                raise ValueError
            entries = json.loads(self._read(record.start, record.size))["config"]
            if not isinstance(entries, dict):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            self._notes.add(f"{shown(record.name.decode('utf-8', 'replace'))} cannot be followed")
            return {}
        return entries

    def _place(self, name: str, entry: Any, folder: bytes) -> None:
        """Note where the tensor ``name`` is."""
        try:
            path = folder + entry["path_name"].encode()
            record = self._records.get(path)
            if record is None or record.method:
                raise Malformed(f"its record {shown(entry['path_name'])} is missing or compressed")
            if path in self._files or (entry["use_pickle"] and path in self._raw):
                raise Malformed("its record is another's")
            if entry["use_pickle"]:
                self._files[path] = name
                return
            dtype, view = _view(name, entry["tensor_meta"])
            if record.size % DTYPES[dtype].itemsize:
                raise Malformed("its record has the wrong size")
            held, views = self._raw.setdefault(path, (dtype, []))
            problem = view_problem(view, record.size // DTYPES[dtype].itemsize)
            if held != dtype or problem:
                raise Malformed(problem or f"its record holds {held}")
            views.append(view)
        except Malformed as error:
            self._notes.add(f"{shown(name)} is not named: {error}")
        except (KeyError, TypeError, ValueError, AttributeError):
            self._notes.add(f"{shown(name)} is not named: its description is not torch's")

    def _found(self) -> list[Storage]:
        found = []
        for path, (dtype, views) in self._raw.items():
            record = self._records[path]
            found.append(Storage(dtype, record.start, record.size, tuple(views)))
        for path, name in self._files.items():
            found += self._within(self._records[path], name)
        return found

    def _within(self, record: Record, name: str) -> list[Storage]:
        """The storages of a file of ``torch.save`` inside the file."""

        def read_inside(offset: int, length: int) -> bytes:
            return self._read(record.start + offset, max(0, min(length, record.size - offset)))

        try:
            if record.method:
                raise Malformed("it is compressed")
            storages = self._inner(read_inside, record.size)
        except Malformed as error:
            self._notes.add(f"{shown(record.name.decode('utf-8', 'replace'))}: {error}")
            return []
        return [
            Storage(s.dtype, record.start + s.offset, s.nbytes, tuple(_renamed(view, name) for view in s.views))
            for s in storages
        ]


def _renamed(view: View, name: str) -> View:
    if not name:
        return view
    return replace(view, name=name if view.name == "tensor" else f"{name}.{view.name}")


def _view(name: str, meta: dict[str, Any]) -> tuple[str, View]:
    """(dtype, view of its record) of a tensor. Raises what is raised by a description that is none."""
    shape, strides = (tuple(_int(n) for n in meta[key]) for key in ("sizes", "strides"))
    start, kind = _int(meta["storage_offset"]), meta["dtype"]
    if meta["layout"] != _STRIDED:
        raise Malformed("it is sparse")
    if kind == _COMPLEX_HALF:
        start, shape, strides = 2 * start, (*shape, 2), (*(2 * s for s in strides), 1)
        return "F16", View(name, shape, start, plain_strides(shape, strides))
    if kind not in _SCALAR_TYPES:
        raise Malformed("its dtype is unknown")
    return _SCALAR_TYPES[kind], View(name, shape, start, plain_strides(shape, strides))


def _int(number: Any) -> int:
    value = number["as_int"]
    if type(value) is not int:
        raise Malformed("its shape is not one")
    return value
