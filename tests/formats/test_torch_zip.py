from __future__ import annotations

import io
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Layout, Storage, View
from arzstream.formats.detect import parser_for
from arzstream.formats.torch_storages import distinct
from arzstream.formats.torch_zip import TorchZipParser

Whole = Callable[..., Layout]
Grow = Callable[..., list[Layout]]


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def found(layout: Layout) -> dict[str, tuple[Storage, View]]:
    return {view.name: (storage, view) for storage in layout.storages for view in storage.views}


def gather(data: bytes, storage: Storage, view: View) -> bytes:
    """The view's elements in row-major order, as the archive will hand them out."""
    itemsize = DTYPES[storage.dtype].itemsize
    flat = np.frombuffer(data, f"V{itemsize}", storage.nbytes // itemsize, storage.offset)[view.start :]
    if view.strides is None:
        return flat[: int(np.prod(view.shape, dtype=np.int64))].tobytes()
    return np.lib.stride_tricks.as_strided(flat, view.shape, [s * itemsize for s in view.strides]).tobytes()


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def assert_holds(data: bytes, layout: Layout, tensors: dict[str, torch.Tensor]) -> None:
    views = found(layout)
    assert list(views) == list(tensors) or set(views) == set(tensors)
    for name, tensor in tensors.items():
        storage, view = views[name]
        assert view.shape == tuple(tensor.shape)
        assert DTYPES[storage.dtype].torch == str(tensor.dtype).removeprefix("torch.")
        assert gather(data, storage, view) == raw(tensor)


def sample() -> tuple[Any, dict[str, torch.Tensor]]:
    """Something to save, and the tensors in it by the names they should get."""
    base = torch.arange(20.0).reshape(4, 5)
    linear = torch.nn.Linear(3, 5)
    value = {
        "model": linear.state_dict(),
        "slice": base[1:3],
        "transposed": base.t(),
        "column": base[:, 2],
        "expanded": torch.ones(1).expand(4, 3),
        "list": [torch.ones(2, dtype=torch.int16), (torch.zeros(3, dtype=torch.bool), {"x": torch.tensor(7)})],
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        5: torch.ones(1),
        "other": [1, 2.5, None, "text", b"bytes", 1 << 70, {"nested": True}, torch.Size([2]), torch.device("cpu")],
    }
    names = {
        "model.weight": linear.weight,
        "model.bias": linear.bias,
        "slice": base[1:3],
        "transposed": base.t(),
        "column": base[:, 2],
        "expanded": torch.ones(4, 3),
        "list.0": torch.ones(2, dtype=torch.int16),
        "list.1.0": torch.zeros(3, dtype=torch.bool),
        "list.1.1.x": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "parameter": torch.ones(2, dtype=torch.bfloat16),
        "5": torch.ones(1),
    }
    return value, names


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_found_under_the_path_to_them_with_their_bytes(protocol: int, whole: Whole) -> None:
    value, names = sample()
    data = saved(value, pickle_protocol=protocol)
    layout = whole(data)
    assert (layout.format, layout.note) == ("torch-zip", "")
    assert_holds(data, layout, names)
    shared = {found(layout)[name][0] for name in ("slice", "transposed", "column")}
    assert len(shared) == 1  # views of one storage


def test_every_dtype_is_found(whole: Whole) -> None:
    tensors = {
        kind.name: torch.arange(9).to(torch.float32).to(getattr(torch, kind.torch)).reshape(3, 3)
        for kind in DTYPES.values()
    }
    data = saved(tensors)
    layout = whole(data)
    assert_holds(data, layout, tensors)
    assert {name: storage.dtype for name, (storage, _) in found(layout).items()} == {name: name for name in DTYPES}


def test_optimiser_state_is_named_as_torch_numbers_it(whole: Whole) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    data = saved(optimizer.state_dict())
    state = optimizer.state_dict()["state"]
    assert_holds(data, whole(data), {f"state.{i}.{slot}": t for i in state for slot, t in state[i].items()})


def test_a_module_pickled_whole_has_the_names_of_its_state_dict(whole: Whole) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4)))
    data = saved(model)
    assert_holds(data, whole(data), dict(model.state_dict()))


def test_tied_and_repeated_tensors_keep_all_their_names(whole: Whole) -> None:
    tied = torch.ones(3)
    data = saved({"a": tied, "b": tied, "c": {"d": tied[1:]}, "c.d": tied * 2})
    layout = whole(data)
    assert_holds(data, layout, {"a": tied, "b": tied, "c.d": tied[1:], "c.d#2": tied * 2})
    assert len(layout.storages) == 2


def test_special_tensors_show_what_they_are_made_of(whole: Whole) -> None:
    class Sub(torch.Tensor):
        pass

    eye = torch.eye(3)
    with pytest.warns(UserWarning):
        quantised = torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8)
        half = torch.ones(2, dtype=torch.complex32)
    globals()["Sub"], Sub.__qualname__ = Sub, "Sub"
    data = saved(
        {
            "coo": eye.to_sparse(),
            "quantised": quantised,
            "half": half,
            "sub": torch.ones(2).as_subclass(Sub),
            "buffer": torch.nn.Buffer(torch.ones(3)),
            "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
            "untyped": torch.ones(3).untyped_storage(),
            "meta": torch.empty(3, device="meta"),
        }
    )
    layout = whole(data)
    assert {name: (storage.dtype, view.shape) for name, (storage, view) in found(layout).items()} == {
        "coo.indices": ("I64", (2, 3)),
        "coo.values": ("F32", (3,)),
        "quantised": ("I8", (3, 3)),
        "half": ("F16", (2, 2)),  # real and imaginary
        "sub": ("F32", (2,)),
        "buffer": ("F32", (3,)),
        "conjugate.conj": ("C64", (3,)),  # what the conjugate is of
    }
    assert layout.note == "'meta' is a meta tensor, which has no elements"
    assert len(layout.storages) == 8


def test_a_lone_tensor_has_a_name(whole: Whole) -> None:
    assert set(found(whole(saved(torch.ones(3))))) == {"tensor"}


def test_python_2_style_ordered_dicts_are_followed(whole: Whole) -> None:
    """OrderedDict called with a list of pairs, as old writers pickled it."""

    class Old(OrderedDict[str, torch.Tensor]):
        def __reduce__(self) -> Any:
            return OrderedDict, ([[key, value] for key, value in self.items()],)

    assert set(found(whole(saved(Old(w=torch.ones(2), b=torch.ones(1)))))) == {"w", "b"}


def growing_samples(folder: Path) -> dict[str, bytes]:
    value, _ = sample()
    samples = {"plain": saved(value), "protocol 5": saved(value, pickle_protocol=5), "none": saved([1, 2])}
    path = folder / "häher.pt"
    torch.save(value, path)
    samples["by path"] = path.read_bytes()
    torch.serialization.set_crc32_options(False)
    try:
        samples["no crc"] = saved(value)
    finally:
        torch.serialization.set_crc32_options(True)
    return samples


@pytest.mark.parametrize("kind", ["plain", "protocol 5", "none", "by path", "no crc"])
def test_what_is_known_while_a_file_grows_agrees_with_the_whole_file(
    kind: str, whole: Whole, grow: Grow, tmp_path: Path
) -> None:
    data = growing_samples(tmp_path)[kind]
    final = whole(data)
    seen: dict[Storage, int] = {}
    for frontier, layout in enumerate(grow(data)):
        assert layout.storages == final.storages[: len(layout.storages)]
        assert layout.complete == (frontier == len(data))
        for storage in layout.storages:
            seen.setdefault(storage, frontier)
    assert layout == final
    for storage, frontier in seen.items():  # known before its first byte is written
        assert frontier <= storage.offset
    assert len(seen) == len(final.storages)


def test_a_file_that_is_written_again_is_noticed(reader: Callable[..., Any]) -> None:
    parser = TorchZipParser()
    for value in ({"a": torch.ones(5)}, {"b": torch.ones(4, dtype=torch.int8), "c": torch.ones(900)}, [torch.ones(2)]):
        data = saved(value)
        for frontier in (20, 200, len(data) * 2 // 3, len(data)):
            layout = parser.update(reader(data[:frontier]), frontier, False)
            final = TorchZipParser().update(reader(data), len(data), True)
            assert layout.storages == final.storages[: len(layout.storages)]
            assert layout.storages or frontier < len(data) // 2
        assert layout == final


def test_a_record_whose_size_the_pickle_does_not_say_ends_the_early_belief(whole: Whole, grow: Grow) -> None:
    """An int8 storage of 9 bytes saved as if it held int16: torch writes 9 bytes, the pickle says 4 elements of 2."""
    odd = torch.arange(9, dtype=torch.int8).untyped_storage()
    data = saved({"odd": torch.tensor([], dtype=torch.int16).set_(odd, 0, (4,)), "next": torch.ones(5)})
    final = whole(data)
    assert [(storage.dtype, storage.nbytes) for storage in final.storages] == [("U8", 9), ("F32", 20)]
    assert set(found(final)) == {"next"} and "does not have the size" in final.note
    layouts = grow(data)
    assert layouts[-1] == final
    assert all(not layout.complete for layout in layouts[:-1])
    assert layouts[-2].storages == ()  # the 8 bytes believed at first were given up again


def rebuilt(data: bytes, change: Callable[[str, bytes], bytes | None], method: int = 0) -> bytes:
    """The same records through Python's own zip writer, with some replaced or (None) left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", method) as target:
        for info in source.infolist():
            content = change(info.filename, source.read(info))
            if content is not None:
                target.writestr(info.filename, content)
    return buffer.getvalue()


def test_a_zip_file_that_another_program_wrote_is_read_alike(whole: Whole, grow: Grow) -> None:
    value, names = sample()
    data = rebuilt(saved(value), lambda _, content: content)
    assert_holds(data, whole(data), names)
    assert grow(data)[-1] == whole(data)  # sizes in local headers, no descriptors


def test_big_endian_numbers_are_kept_as_bytes(whole: Whole, grow: Grow) -> None:
    value = {"a": torch.ones(3), "bytes": torch.ones(5, dtype=torch.int8)}
    data = rebuilt(saved(value), lambda name, c: b"big" if name.endswith("byteorder") else c)
    layout = whole(data)
    assert [storage.dtype for storage in layout.storages] == ["U8", "I8"]
    assert set(found(layout)) == {"bytes"}  # which have no order
    assert "big-endian" in layout.note
    assert grow(data)[-1] == layout


def test_without_a_pickle_that_can_be_followed_storages_are_still_found(whole: Whole) -> None:
    value = {"a": torch.ones(3), "b": torch.ones(4, dtype=torch.bfloat16)}
    data = rebuilt(saved(value), lambda name, c: b"\x80\x02X" if name.endswith("data.pkl") else c)
    layout = whole(data)
    assert [(storage.dtype, storage.nbytes) for storage in layout.storages] == [("U8", 12), ("U8", 8)]
    assert "pickle" in layout.note
    cut = rebuilt(saved(value), lambda name, c: c[:-20] + b"\xff" * 20 if name.endswith("data.pkl") else c)
    assert [storage.dtype for storage in whole(cut).storages] == ["F32", "BF16"]  # from the ids met before


def test_a_storage_that_is_missing_is_noted(whole: Whole) -> None:
    data = rebuilt(saved({"a": torch.ones(3), "b": torch.ones(4)}), lambda n, c: None if n.endswith("data/0") else c)
    layout = whole(data)
    assert set(found(layout)) == {"b"} and "storage '0' is missing" in layout.note


def test_zip64_sizes_are_read(whole: Whole, grow: Grow) -> None:
    """Directory and descriptors in the 8-byte form, as torch writes them beyond 4 GiB."""
    data = bytearray(saved({"a": torch.ones(30)}))
    at = data.index(b"PK\x01\x02")
    central, end = bytes(data[at:]), data.rindex(b"PK\x06\x06")
    entries = []
    position = 0
    while central[position : position + 4] == b"PK\x01\x02":
        fields = list(struct.unpack_from("<4s6H3I5H2I", central, position))
        name_length = fields[10]
        name = central[position + 46 : position + 46 + name_length]
        position += 46 + name_length + fields[11]
        extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        fields[11] = len(extra)
        entries.append(struct.pack("<4s6H3I5H2I", *fields) + name + extra)
    directory = b"".join(entries)
    tail = bytearray(data[end:])
    struct.pack_into("<2Q", tail, 40, len(directory), at)
    struct.pack_into("<Q", tail, 56 + 8, at + len(directory))
    wide = bytes(data[:at]) + directory + bytes(tail)
    assert whole(wide).storages == whole(bytes(data)).storages
    assert grow(wide, frontiers=range(0, len(wide) + 1, 7))[-1].format == "torch-zip"


def test_a_file_beyond_4_gib_is_read_from_both_ends(tmp_path: Path) -> None:
    """8 GiB that torch leaves out of the file: sizes and places beyond 32 bits, in descriptors and directory."""
    path = tmp_path / "big.pt"
    value = {
        "bytes": torch.empty((1 << 32) + 64, dtype=torch.uint8),
        "floats": torch.empty(1 << 30),
        "after": torch.empty(5),
    }
    with torch.serialization.skip_data():
        torch.save(value, path)
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        size = path.stat().st_size
        directory = read(size - 4096, 4096)
        assert size > 1 << 33 and b"PK\6\6" in directory and b"\xff" * 8 in directory
        final = TorchZipParser().update(read, size, True)
        early = TorchZipParser().update(read, size - len(directory) + directory.index(b"PK\1\2"), False)
    views = {view.name: (storage.dtype, view.shape) for storage in final.storages for view in storage.views}
    assert views == {"bytes": ("U8", ((1 << 32) + 64,)), "floats": ("F32", (1 << 30,)), "after": ("F32", (5,))}
    assert final.complete and not final.note and early.storages == final.storages


def test_torchscript_archives_show_their_parameters(whole: Whole, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    path = tmp_path / "script.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.script(model).save(str(path))
    data = path.read_bytes()
    assert_holds(data, whole(data), dict(model.state_dict()))


def test_what_is_no_torch_zip_is_opaque_and_says_why(whole: Whole) -> None:
    old = saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False)
    good = saved({"a": torch.ones(3)})
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("a.txt", b"text")
    compressed = rebuilt(good, lambda _, content: content, zipfile.ZIP_DEFLATED)
    for data, name, why in [
        (old[:-1], "pytorch_model.bin", "cut off"),
        (good[:-1], "a.pt", "cut off"),
        (good[: len(good) // 2], "a.pt", "cut off"),
        (good + b"x", "a.pt", "directory"),
        (b"x" + good, "a.pt", "not a PyTorch zip"),
        (other.getvalue(), "a.pt", "no data.pkl"),
        (compressed, "a.pt", "compressed"),
        (b"hello", "a.ckpt", "not a PyTorch zip"),
        (b"", "a.pt", ""),
        (b"hello", "a.bin", ""),
        (other.getvalue(), "a.bin", ""),
        (b'{"a": 1}', "config.json", ""),
    ]:
        layout = whole(data, name)
        assert (layout.format, layout.storages) == ("opaque", ())
        assert why in layout.note and bool(why) == bool(layout.note)


def test_a_directory_that_disagrees_with_the_records_makes_the_file_opaque(whole: Whole) -> None:
    data = saved({"a": torch.ones(3), "b": torch.ones(3)})
    directory = data.index(b"PK\x01\x02")
    entry = data.index(b"archive/data/1", directory) - 46

    def patched(at: int, value: bytes) -> bytes:
        return data[:at] + value + data[at + len(value) :]

    length = struct.pack("<2I", 1 << 20, 1 << 20)
    other_start = struct.pack("<I", data.index(b"archive/data/0") - 30)
    for damaged in (
        patched(entry + 46, b"archive/data/9"),
        patched(entry + 20, length),  # beyond the directory
        patched(entry + 20, struct.pack("<2I", 130, 130)),  # into the next record
        patched(entry + 42, other_start),  # two entries for one record
        patched(entry + 10, b"\x08"),  # said to be compressed
        patched(data.index(b"archive/data/1"), b"archive/data/0").replace(b"archive/data/1", b"archive/data/0"),
    ):
        layout = whole(damaged)
        assert layout.format == "opaque" and "record" in layout.note


def test_a_file_that_turns_into_another_kind_is_noticed(reader: Callable[..., Any]) -> None:
    import safetensors.torch

    parser = parser_for("pytorch_model.bin")
    torch_zip, weights = saved({"a": torch.ones(3)}), safetensors.torch.save({"a": torch.ones(3)})
    for data, kind in (
        (torch_zip, "torch-zip"),
        (weights, "safetensors"),
        (b"x" * 99, "opaque"),
        (torch_zip, "torch-zip"),
    ):
        assert parser.update(reader(data), len(data), False).format == kind


def test_content_tells_what_the_name_does_not(whole: Whole) -> None:
    import safetensors.torch

    weights = safetensors.torch.save({"a": torch.ones(3)})
    assert whole(weights, ".tmpAbCdEf").format == "safetensors"
    assert whole(weights, "pytorch_model.bin").format == "safetensors"
    assert whole(saved({"a": torch.ones(3)}), "blobs/0123abcd").format == "torch-zip"


def test_a_name_that_appears_very_often_takes_no_time() -> None:
    """As the tensors of ten thousand files inside an exported program."""
    storages = [Storage("U8", i, 1, (View("w", (1,)),)) for i in range(50_000)]
    storages.insert(3, Storage("U8", 3, 0, (View("w#5", (0,)),)))
    begin = time.process_time()
    names = [view.name for storage in distinct(storages) for view in storage.views]
    assert time.process_time() - begin < 5
    assert names[:7] == ["w", "w#2", "w#3", "w#5", "w#4", "w#6", "w#7"] and len(set(names)) == len(names)
