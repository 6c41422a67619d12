"""The old format of torch.save: known from its pickles on, whole only with every count and byte."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from arzstream.formats.base import Layout, Storage, View
from arzstream.formats.torch_legacy import TorchLegacyParser

Whole = Callable[..., Layout]
Grow = Callable[..., list[Layout]]


def saved(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def found(layout: Layout) -> dict[str, tuple[Storage, View]]:
    return {view.name: (storage, view) for storage in layout.storages for view in storage.views}


BASE = torch.arange(12.0).reshape(3, 4)
VALUE = {"a": BASE, "rows": BASE[1:].t(), "half": torch.ones(2, dtype=torch.bfloat16), "none": torch.empty(0)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_layout_is_known_as_soon_as_the_pickles_are_there(protocol: int, whole: Whole, grow: Grow) -> None:
    data = saved(VALUE, protocol)
    final = whole(data, "pytorch_model.bin")
    assert set(found(final)) == set(VALUE) and final.format == "torch-legacy" and not final.note
    first = min(storage.offset for storage in final.storages) - 8
    for frontier, layout in enumerate(grow(data, "pytorch_model.bin")):
        assert layout.storages == (final.storages if frontier >= first else ())
        assert layout.complete == (frontier == len(data))


def test_a_file_that_is_written_again_is_noticed(reader: Callable[..., Any]) -> None:
    parser = TorchLegacyParser()
    for value in (VALUE, {"b": torch.ones(900)}, [torch.ones(2)]):
        data = saved(value)
        final = TorchLegacyParser().update(reader(data), len(data), True)
        for frontier in (20, len(data) - 1, len(data)):
            layout = parser.update(reader(data[:frontier]), frontier, False)
            assert layout.storages in ((), final.storages)
        assert layout == final


def test_what_follows_the_last_storage_is_noted(whole: Whole) -> None:
    layout = whole(saved(VALUE) + b"rest")
    assert set(found(layout)) == set(VALUE) and "bytes follow" in layout.note


def test_a_count_that_disagrees_with_the_pickle_makes_the_file_opaque(whole: Whole) -> None:
    data = bytearray(saved({"a": torch.ones(300)}))
    at = data.index((300).to_bytes(8, "little"))
    for count in (299, 301, 1 << 62, (1 << 64) - 1):
        data[at : at + 8] = count.to_bytes(8, "little")
        layout = whole(bytes(data))
        assert layout.format == "opaque" and "does not have the size" in layout.note


class Old(pickle.Pickler):
    """Writes as PyTorch 0.1 to 0.3 under Python 2 did: texts as bytes, and views of storages in persistent ids."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Part):
            return "storage", torch.FloatStorage, "94037", "cpu", 12, obj.view
        return None


class Part:
    def __init__(self, view: tuple[str, int, int] | None) -> None:
        self.view = view


class Tensor:
    def __init__(self, part: Part, *args: Any) -> None:
        self.args = part, *args

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, self.args


def test_views_of_storages_as_the_oldest_files_have_them(whole: Whole) -> None:
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, buffer, 2)
    tensors = {"whole": Tensor(Part(None), 0, (3, 4), (4, 1)), "part": Tensor(Part(("94038", 5, 7)), 1, (2,), (1,))}
    Old(buffer, 2).dump(tensors)
    pickle.dump(["94037"], buffer, 2)
    pickles = buffer.getvalue()
    for text in (b"storage", b"94037", b"94038", b"cpu", b"whole", b"part", b"little_endian"):
        pickles = pickles.replace(b"X" + len(text).to_bytes(4, "little") + text, b"U" + bytes([len(text)]) + text)
    buffer = io.BytesIO(pickles)
    buffer.seek(0, 2)
    buffer.write((12).to_bytes(8, "little") + BASE.numpy().tobytes())
    layout = whole(buffer.getvalue())
    (storage,) = layout.storages
    assert (storage.dtype, storage.nbytes, layout.note) == ("F32", 48, "")
    assert [(view.name, view.shape, view.start) for view in storage.views] == [("whole", (3, 4), 0), ("part", (2,), 6)]


def test_a_pickle_that_speaks_of_no_such_storage_makes_the_file_opaque(whole: Whole) -> None:
    data = saved({"a": torch.ones(3)})
    key = max(re.findall(rb"\d{6,}", data), key=len)
    at = data.rindex(key)
    assert "no pickle speaks of" in whole(data[:at] + b"x" * len(key) + data[at + len(key) :]).note
