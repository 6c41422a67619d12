from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arzstream.formats.base import Layout, Malformed
from arzstream.formats.pickle_walk import Blob, Machine
from arzstream.formats.torch_pickle import read_contents

Whole = Callable[..., Layout]


class Bomb:
    """Unpickling this runs a command."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_is_never_run(protocol: int, whole: Whole, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    buffer = io.BytesIO()
    hostile = {
        "a": torch.ones(3),
        "system": Bomb(os.system, f"touch {canary}"),
        "exec": Bomb(exec, f"open({str(canary)!r}, 'w').close()"),
        "path": Bomb(Path.touch, canary),
        "b": torch.ones(2),
    }
    torch.save(hostile, buffer, pickle_protocol=protocol)
    layout = whole(buffer.getvalue())
    assert [view.name for storage in layout.storages for view in storage.views] == ["a", "b"]
    assert not canary.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)  # the canary sings when it is let out
    assert canary.exists()


def test_formats_do_not_even_import_pickle_or_torch() -> None:
    code = (
        "import sys, arzstream.formats.detect, arzstream.formats.checkpoint, arzstream.formats.order;"
        "print([m for m in ('pickle', '_pickle', 'torch', 'numpy', 'shelve', 'marshal.loads') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_walk_ends_where_the_pickle_does() -> None:
    data = pickle.dumps({"a": [1, 2.5, (3, None, True), b"x", "ä", 1 << 40, {4}, frozenset([5]), bytearray(b"6")]}, 5)
    machine = Machine(data + b"rest")
    machine.run()
    assert machine.end == len(data)


HOSTILE = {
    "cut off": pickle.dumps([1, 2, 3])[:-1],
    "empty stack": b"\x80\x02.",
    "unknown opcode": b"\x80\x02\xff.",
    "no mark": b"\x80\x02t.",
    "memo that was not put": b"\x80\x02h\x05.",
    "huge string": b"\x80\x04\x8d" + b"\xff" * 8 + b"x.",
    "huge long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "pop below the mark": b"\x80\x02NN(0.",
    "odd pairs": b"\x80\x02}(Nu.",
    "text that is not UTF-8": b"\x80\x02X\x01\0\0\0\xff.",
    "setitem on nothing": b"\x80\x02s.",
    "append to itself": b"\x80\x02]q\0h\0a.",
    "nested 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "empty": b"",
}


@pytest.mark.parametrize("why", HOSTILE)
def test_pickles_that_make_no_sense_give_nothing_and_do_no_harm(why: str) -> None:
    contents = read_contents(HOSTILE[why])
    assert contents.tensors == [] and contents.storages == {}


def test_nothing_is_taken_from_below_a_mark() -> None:
    with pytest.raises(Malformed):
        Machine(HOSTILE["pop below the mark"]).run()


def tensor_at(key: bytes = b"0", size: bytes = b"K\x03\x85") -> bytes:
    """Opcodes that rebuild a tensor with the storage ``key``."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + key + b"X\x03\0\0\0cpuK\x03tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + b"K\x01\x85\x89}tR"


def test_paths_to_shared_nodes_are_bounded() -> None:
    """Each of 60 lists holds the one before it twice: 2^60 paths lead to the tensor."""
    data = b"\x80\x02" + tensor_at()
    for i in range(60):
        data += b"q" + bytes([i]) + b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"e"
    begin = time.process_time()
    contents = read_contents(data + b".")
    assert time.process_time() - begin < 5
    assert "too many paths" in str(contents.notes)
    assert list(contents.storages) == ["0"]


def test_what_contains_itself_is_named_once() -> None:
    data = b"\x80\x02]q\0(" + tensor_at() + b"h\0]q\x01(h\x00h\x01" + tensor_at() + b"ee."
    contents = read_contents(data)
    assert [tensor.name for tensor in contents.tensors] == ["0", "2.2"]
    assert str(contents.notes) == ""


def test_lists_that_are_shared_widely_are_bounded() -> None:
    """100,000 references to one list of 100,000 numbers: 10^10 steps if each were looked at each time."""
    data = b"\x80\x02](" + b"N" * 100_000 + b"eq\x00](" + b"h\x00" * 100_000 + b"e."
    begin = time.process_time()
    read_contents(data)
    assert time.process_time() - begin < 20


def test_names_do_not_grow_without_bound() -> None:
    """A key of 1 MB, used at 90 levels."""
    key = b"X\x40\x42\x0f\0" + b"k" * 1_000_000 + b"q\x01"
    data = b"\x80\x02" + key + b"0" + b"}h\x01" * 90 + tensor_at() + b"s" * 90 + b"."
    contents = read_contents(data)
    assert contents.tensors == [] and "too long" in str(contents.notes) and len(str(contents.notes)) < 400


def test_long_texts_and_bytes_are_left_where_they_are() -> None:
    for opcode in (b"X", b"B"):
        node = Machine(b"\x80\x03" + opcode + (2000).to_bytes(4, "little") + b"x" * 2000 + b".").run()
        assert isinstance(node, Blob) and (node.start, node.nbytes) == (7, 2000)


def test_numbers_that_are_no_shape_are_refused() -> None:
    for size in (b"X\x01\0\0\0a\x85", b"N", b"K\x03\x85\x85", b"G" + b"\0" * 8 + b"\x85", b"(" + b"K\x01" * 65 + b"t"):
        contents = read_contents(b"\x80\x02" + tensor_at(size=size) + b".")
        assert contents.tensors == [] and "not named" in str(contents.notes)


def test_a_storage_with_two_types_has_none() -> None:
    two = tensor_at() + tensor_at().replace(b"FloatStorage", b"HalfStorage") + b"\x86."
    contents = read_contents(b"\x80\x02" + two)
    assert contents.storages["0"].dtype is None


def test_following_a_large_state_dict_takes_seconds_at_most() -> None:
    parts = [
        b"X" + len(name).to_bytes(4, "little") + name + tensor_at() for name in (b"%06d" % i for i in range(20_000))
    ]
    data = b"\x80\x02}(" + b"".join(parts) + b"u."
    begin = time.process_time()
    contents = read_contents(data)
    assert len(contents.tensors) == 20_000
    assert time.process_time() - begin < 10
