"""Truncated, flipped and made-up files: an answer that keeps its promises, quickly, whatever the bytes."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arzstream.formats.base import Layout, pieces, problem_of
from arzstream.formats.detect import parser_for
from arzstream.formats.safetensors import SafetensorsParser
from arzstream.formats.torch_pickle import read_contents
from arzstream.formats.torch_zip import TorchZipParser

Whole = Callable[..., Layout]


def gguf_sample() -> bytes:
    """Two tensors, strings, arrays of both, nested ones; nothing after the last tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = [
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("general.name") + struct.pack("<I", 8) + text("a model"),
        text("tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("") + text("b c"),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1.0, 2.0, 3.0),
        text("nested") + struct.pack("<IIQ", 9, 9, 2) + 2 * struct.pack("<IQ2H", 2, 2, 7, 9),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 2, 2, 0),
        text("norm") + struct.pack("<IQIQ", 1, 8, 0, 96),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values + tensors)
    return head + bytes(-len(head) % 32) + bytes(range(72)) + bytes(24) + struct.pack("<8f", *range(8))


def export_sample() -> bytes:
    """As torch.export.save writes it, but small: a weight in a record, a pickled one, a constant, sample inputs."""

    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    def entry(path: str, *sizes: int, pickled: bool = False) -> dict[str, Any]:
        numbers = [{"as_int": n} for n in sizes]
        meta = {"dtype": 7, "sizes": numbers, "strides": [*numbers[1:], {"as_int": 1}]}
        meta |= {"storage_offset": {"as_int": 0}, "layout": 7}
        return {"path_name": path, "use_pickle": pickled, "tensor_meta": meta}

    records = {
        "data/weights/weight_0": bytes(24),
        "data/weights/weight_1": saved(torch.ones(3)),
        "data/weights/model_weights_config.json": json.dumps(
            {
                "config": {
                    "w": entry("weight_0", 3, 2),
                    "tied": entry("weight_0", 3, 2),
                    "p": entry("weight_1", 3, pickled=True),
                }
            }
        ).encode(),
        "data/constants/tensor_0": bytes(8),
        "data/constants/model_constants_config.json": json.dumps({"config": {"c": entry("tensor_0", 2)}}).encode(),
        "data/sample_inputs/model.pt": saved(((torch.ones(2),), {})),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in records.items():
            file.writestr(f"m/{name}", content)
    return buffer.getvalue()


def onnx_sample() -> bytes:
    """Initialisers in two forms, dense and sparse, an attribute, a graph in a node; opsets come last."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    inner = helper.make_graph([], "inner", [], [], initializer=[tensor(np.ones(4, np.float16), "h")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor(np.arange(300, dtype=np.float32))),
        helper.make_node("If", ["x"], ["y"], "choice", then_branch=inner, doc_string="text " * 250),
    ]
    sparse = helper.make_sparse_tensor(tensor(np.ones(2, np.float32), "s"), tensor(np.arange(2, dtype=np.int64)), [9])
    graph = helper.make_graph(
        nodes, "g", [], [],
        initializer=[
            tensor(np.ones((3, 2), np.float32), "layers.0.w"),
            helper.make_tensor("typed", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
            helper.make_tensor("numbers", onnx.TensorProto.INT32, [3], [1, 2, 300]),
        ],
        sparse_initializer=[sparse],
    )  # fmt: skip
    return bytes(helper.make_model(graph, producer_name="test").SerializeToString())


def flax_sample() -> bytes:
    def array(values: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))

    tree = {"params": {"Dense_0": {"kernel": array(np.ones((2, 3), np.float32)), "bias": array(np.ones(3))}}}
    return bytes(msgpack.packb({**tree, "step": 70000, "rate": 0.5, "names": ["a", "b"], "none": None}))


def numpy_samples() -> dict[str, bytes]:
    one, many = io.BytesIO(), io.BytesIO()
    np.save(one, np.asfortranarray(np.ones((3, 2), np.float32)))
    np.savez(many, w=np.ones((3, 2), np.float16), **{"layers.0.b": np.ones(5), "mask": np.ones(3, bool)})
    return {"a.npy": one.getvalue(), "model.npz": many.getvalue()}


def samples() -> dict[str, bytes]:
    weights = {"layers.0.w": torch.ones(3, 2, dtype=torch.bfloat16), "norm": torch.ones(5), "e": torch.empty(0)}
    buffer = io.BytesIO()
    torch.save({"state": {0: {"exp_avg": torch.ones(4), "step": torch.tensor(1.0)}}, "n": [1, "x"]}, buffer)
    old = io.BytesIO()
    torch.save(
        {"w": torch.ones(3, 2), "n": [torch.ones(2, dtype=torch.int8)]}, old, _use_new_zipfile_serialization=False
    )
    return {
        "model.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
        "optimizer.pt": buffer.getvalue(),
        "pytorch_model.pth": old.getvalue(),
        "model.pt2": export_sample(),
        "model.gguf": gguf_sample(),
        "model.onnx": onnx_sample(),
        "flax_model.msgpack": flax_sample(),
        **numpy_samples(),
    }


SAMPLES = samples()


def check(data: bytes, name: str) -> Layout:
    """The definite layout, and what a growing file of these bytes gives, keep the promises of a layout."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and 0 <= length <= (64 << 20) + 8
        return data[offset : offset + length]

    parser = parser_for(name)
    for frontier in (0, 9, len(data) // 2, len(data)):
        early = parser.update(read, min(frontier, len(data)), False)
        assert problem_of(early) == ""
    layout = parser.update(read, len(data), True)
    assert problem_of(layout, len(data)) == "" and layout.complete and layout.size == len(data)
    assert sum(piece.nbytes for piece in pieces(layout, len(data))) == len(data)
    assert len(layout.note) < 500 and "\n" not in layout.note
    return layout


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_is_opaque_and_says_why(name: str) -> None:
    data = SAMPLES[name]
    for size in range(len(data)):
        layout = check(data[:size], name)
        assert layout.format == "opaque" and (layout.note or size == 0)


@pytest.mark.parametrize("name", SAMPLES)
def test_flipped_bits_never_raise_or_break_a_layout(name: str) -> None:
    data = SAMPLES[name]
    bits = range(len(data) * 8) if len(data) < 1000 else random.Random(5).sample(range(len(data) * 8), 4000)
    for bit in bits:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        check(bytes(damaged), name)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_overwritten_with_telling_values_never_raise(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SAMPLES)))
    damaged = bytearray(SAMPLES[name])
    telling = [0, 1, -1, 1 << 31, 1 << 60, (1 << 63) - 1, 0xFFFF, 0xFFFFFFFF]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 8))
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        value = data.draw(st.sampled_from(telling)) & ((1 << 8 * width) - 1)
        damaged[at : at + width] = value.to_bytes(width, "little")
    check(bytes(damaged), name)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_made_up_pickles_never_raise(body: bytes) -> None:
    read_contents(b"\x80\x02" + body)
    read_contents(body)


OPCODES = [bytes([code]) for code in b"(.012NKMJGXUTCBQRbclehjqrstu)}]a"] + [
    bytes([code]) for code in range(0x80, 0x99)
]
WORDS = st.one_of(
    st.sampled_from(OPCODES),
    st.sampled_from(
        [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"X\x07\0\0\0storage", b"K\x01"]
    ),
    st.sampled_from([b"q\0", b"h\0", b"X\x01\0\0\0" + b"0", b"}", b"\x86", b"\x87", b"(", b"t", b"R", b"Q"]),
)


@given(st.lists(WORDS, max_size=60))
@settings(max_examples=500, deadline=None)
def test_made_up_programs_of_real_opcodes_never_raise(words: list[bytes]) -> None:
    read_contents(b"\x80\x02" + b"".join(words) + b".")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 65) | st.sampled_from(["F32", "U8", "F4", "", "x"]) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), JSON, max_size=3), st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_made_up_headers_never_raise(header: dict[str, Any], data: bytes) -> None:
    raw = json.dumps(header).encode()
    check(struct.pack("<Q", len(raw)) + raw + data, "model.safetensors")


def test_a_frontier_that_jumps_about_never_raises() -> None:
    rng = random.Random(3)
    for name, data in SAMPLES.items():
        final = check(data, name)
        parser = parser_for(name)
        for _ in range(2000):
            frontier = rng.randrange(len(data) + 1)
            garbage = rng.random() < 0.3
            seen = rng.randbytes(frontier) if garbage else data[:frontier]
            layout = parser.update(lambda o, n, seen=seen: seen[o : o + n], frontier, False)
            if not garbage:
                assert set(layout.storages) <= set(final.storages)
        assert parser.update(lambda o, n, data=data: data[o : o + n], len(data), True) == final


def test_hostile_sizes_allocate_nothing_and_take_no_time() -> None:
    """In a process that may use 1 GiB of address space."""
    code = """
import resource, struct
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from arzstream.formats.detect import parser_for
def check(data, name, size=None):
    for final in (False, True):
        size = size or len(data)
        layout = parser_for(name).update(lambda o, n: data[o:o + n], size, final)
        print(layout.format, len(layout.storages))
header = b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}'
check(struct.pack('<Q', len(header)) + header, 'a.safetensors')
head = b'GGUF' + struct.pack('<I', 3)
check(head + struct.pack('<QQQ', 1 << 60, 1 << 60, 1 << 60), 'a.gguf')
check(head + struct.pack('<QQ', 1, 1 << 60) + bytes(1 << 20), 'a.gguf')
check(head + struct.pack('<QQQIIQ', 1, 1, 0, 9, 8, 1 << 60) + bytes(30 << 20), 'a.gguf')
check(head + struct.pack('<QQQIIQ', 1, 1, 0, 9, 0, 1 << 62) + bytes(100), 'a.gguf', 1 << 60)
check(head + struct.pack('<QQQIQQIQ', 1, 0, 0, 2, 1 << 62, 1 << 62, 0, 0), 'a.gguf')
check(head + struct.pack('<QQ', 1, 1) + struct.pack('<QI', 0, 9) + struct.pack('<IQ', 9, 1 << 40) * 1000, 'a.gguf')
check(struct.pack('<Q', 1 << 60) + b'{}', 'a.safetensors')
check(struct.pack('<Q', 99_000_000) + b'{}', 'a.safetensors', 1 << 60)
end = struct.pack('<4s4H2IH', b'PK\\5\\6', 0, 0, 65535, 65535, 0xFFFFFFFE, 8, 0)
check(b'PK\\3\\4' + bytes(100) + end, 'a.pt')
end64 = struct.pack('<4sQ2H2I4Q', b'PK\\6\\6', 44, 0, 0, 0, 0, 1 << 60, 1 << 60, 1 << 61, 4)
locator = struct.pack('<4sIQI', b'PK\\6\\7', 0, 104, 1)
check(b'PK\\3\\4' + bytes(100) + end64 + locator + end, 'a.pt')
def array(text): return b'\\x93NUMPY\\1\\0' + struct.pack('<H', len(text)) + text
check(array(b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 99999999999)}"), 'a.npy')
check(array(b"{'descr': '|V999999999', 'fortran_order': False, 'shape': (99999999999999999999,)}"), 'a.npy')
check(array(b'(' * 60000), 'a.npy')
check(array(b"{'a':" * 12000), 'a.npy')
check(b'\\x93NUMPY\\2\\0' + struct.pack('<I', 0xFFFFFFFF) + b'{', 'a.npy', 1 << 40)
check(bytes([0xDF, 255, 255, 255, 255]) + (b'\\xa1k' + bytes([0xDF, 255, 255, 255, 255])) * 100000, 'a.msgpack')
check(bytes([0xDF, 255, 255, 255, 255]) + b'\\xa1k\\x01' * 1500000, 'a.msgpack')
check(b'\\x81\\xa1k' + bytes([0xC9, 255, 255, 255, 255, 1]) + b'\\x93\\xdd' + b'\\xff' * 99, 'a.msgpack', 1 << 40)
varint = b'\\xff' * 9 + b'\\1'
check(b'\\x08\\x08\\x3a' + varint, 'a.onnx', 1 << 60)
graph, nested = b'\\x3a' + b'\\x80' * 4 + b'\\x40', b'\\x0a\\xff\\xff\\xff\\x7f\\x2a\\xff\\xff\\xff\\x7e'
check(b'\\x08\\x08' + graph + nested * 20, 'a.onnx', 1 << 40)
check(b'\\x08\\x08' * 1500000, 'a.onnx')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["safetensors 1", "opaque 0"]
    assert lines[2:14] == ["gguf 0", "opaque 0"] * 6
    assert lines[14:16] == ["safetensors 0", "opaque 0"]
    assert all(line == "opaque 0" for line in lines[15::2])


def test_damaged_descriptions_of_exported_tensors_never_raise() -> None:
    data = SAMPLES["model.pt2"]
    assert {v.name for s in check(data, "model.pt2").storages for v in s.views} == {
        "w", "tied", "p", "c", "sample_inputs.0.0",
    }  # fmt: skip
    for good, bad in (
        (b'"weight_0"', b'"weight_1"'),
        (b'"weight_1"', b'"weight_0"'),
        (b'"as_int": 3', b'"as_int":-3'),
        (b'"as_int": 2', b'"as_int":[]'),
        (b'"as_int": 2', b'"as_num": 2'),
        (b'"dtype": 7', b'"dtype":99'),
        (b'"dtype": 7', b'"dtype": 8'),
        (b'"dtype": 7', b'"dtype":[]'),
        (b'"layout": 7', b'"layout": 1'),
        (b'{"config": {', b'["config", {'),
        (b'{"config": {', b"[[[[[[[[[[[["),
        (b"data.pkl", b"data.pkk"),
        (b'"as_int": 0', b'"as_int": 9'),
    ):
        assert len(good) == len(bad)
        layout = check(data.replace(good, bad), "model.pt2")
        assert layout.note, bad
        assert layout.format == "torch-export" or bad == b"data.pkk", bad


def test_pickles_inside_an_exported_program_cost_together_what_one_may() -> None:
    """A hundred files of torch.save, each with a pickle that leads to one tensor on 2^60 paths."""
    good = io.BytesIO()
    torch.save([torch.ones(1)], good)
    with zipfile.ZipFile(good) as file:
        records = {info.filename: file.read(info) for info in file.infolist()}
    pickled = records["archive/data.pkl"]
    body = pickled[: pickled.rindex(b"a")]
    for i in range(60):
        body += b"q" + bytes([100 + i]) + b"0](h" + bytes([100 + i]) + b"h" + bytes([100 + i]) + b"e"
    records["archive/data.pkl"] = body + b"."
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    with zipfile.ZipFile(outer, "w") as file:
        for i in range(100):
            file.writestr(f"m/{i}/serialized_state_dict.pt", inner.getvalue())
    begin = time.process_time()
    layout = TorchZipParser().update(lambda o, n: outer.getvalue()[o : o + n], len(outer.getvalue()), True)
    assert time.process_time() - begin < 10
    assert layout.format == "torch-export" and "too" in layout.note


def test_many_false_ends_and_descriptors_take_no_time() -> None:
    zeros = SAMPLES["optimizer.pt"][:64]
    for filler in (b"PK\x05\x06", b"PK\x07\x08", b"PK\x06\x07", b"PK\x03\x04", b"PK\x01\x02"):
        data = zeros + filler * 200_000
        parser = TorchZipParser()
        begin = time.process_time()
        for frontier in (*range(100_000, len(data), 100_000), len(data)):
            parser.update(lambda o, n, data=data: data[o : o + n], frontier, frontier == len(data))
        assert time.process_time() - begin < 10


def test_reads_that_come_back_short_mean_not_there_yet() -> None:
    """A file that shrank after its size was asked for."""
    for parser, data in (
        (SafetensorsParser(), SAMPLES["model.safetensors"]),
        (TorchZipParser(), SAMPLES["optimizer.pt"]),
    ):
        for have in range(0, len(data), 13):
            layout = parser.update(lambda o, n, d=data[:have]: d[o : o + n], len(data), False)
            assert problem_of(layout) == ""
            final = parser.update(lambda o, n, d=data[:have]: d[o : o + n], len(data), True)
            assert final.size == len(data) and final.complete
