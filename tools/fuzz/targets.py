"""What is tried: each parser, with the words of its format and what may be done to the parts of its files."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any

from tools.fuzz import examine, structures
from tools.fuzz.seeds import Files

__all__ = ["PARSERS", "Target"]


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser, and how to make inputs for it. ``edits`` are tried in a third of all cases."""

    name: str
    examine: Callable[[bytes, Files, random.Random], tuple[Any, ...]]
    edits: tuple[structures.Edit, ...] = ()
    tokens: tuple[bytes, ...] = ()


_JSON = (
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"weight_map"', b'"F32"', b'"F4"', b'"BF16"',
    b'"U8"', b"[0,0]", b",", b":", b"{", b"}", b"[", b"]", b'"w":', b'"\\u0000"', b'"a\\nb"', b'"../x"', b'"config"',
    b'"as_int"', b'"use_pickle": true', b'"saved_offsets"',
)  # fmt: skip
_PICKLE = (
    *(bytes((code,)) for code in b"(.012NKMJGXUTCBQRbclehjqrstu)}]ad"), *(bytes((code,)) for code in range(0x80, 0x99)),
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch.storage\nUntypedStorage\n", b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n", b"X\x07\0\0\0storage",
    b"X\x01\0\0\x000", b"q\0", b"h\0", b"h\1", b"K\x01", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"q\x200](h\x20h\x20e", b"X\x03\0\0\0\xed\xa0\x80", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"cos\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch\nSize\n", b"G\x7f\xf8\0\0\0\0\0\0", b"\x80\x02", b"\x80\x05",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_wrapper_subclass\n",
)  # fmt: skip
_ZIP = (
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08", b"archive/data.pkl", b"/data/0",
    b".data/serialization_id", b"big", b"little", b"\1\0\x10\0" + b"\xff" * 16, b"FB\4\0ZZZZ",
)  # fmt: skip
_GGUF = (
    b"GGUF", b"GGUF\3\0\0\0", b"\x11general.alignment", b"\x09\0\0\0\x09\0\0\0", b"\x09\0\0\0\x08\0\0\0",
    b"\x04\0\0\0",
)  # fmt: skip
_NPY = (
    b"\x93NUMPY\1\0", b"'descr'", b"'<f4'", b"'|V9'", b"'fortran_order': True", b"'shape': ()", b"(1,)",
    b"[('a', '<f8')]", b"'>f4'", b"None", b"'<M8[ns]'", b"'|O'", b"2**9", b"{", b"}",
)  # fmt: skip
_ONNX = (
    b"\x08\x08", b"\x3a\x80\x01", b"\x2a\x04\x0a\x02", b"\x4a\x04", b"\x70\x01", b"location", b"../x", b"offset",
    b"length",
)  # fmt: skip
_FLAX = (
    b"\x81\xa1k", b"\xc7\x00\x01", b"\xc9\xff\xff\xff\xff\x01", b"\x93\x92\x02\x03\xa7float32", b"\xdf\xff\xff\xff\xff",
    b"\xdd\0\0\0\0",
)  # fmt: skip
_HDF5 = (
    b"\x89HDF\r\n\x1a\n", b"TREE", b"SNOD", b"HEAP", b"OHDR", b"OCHK", b"\x10\0\x10\0", b"\x11\0\x10\0", b"\xff" * 8,
    b"\x08\0\x18\0", b"\x10\x10\0", b"\0\0\0\0\0\0\0\0",
)  # fmt: skip
_MAGIC = (
    b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh9", b"7z\xbc\xaf\x27\x1c", b"\x89PNG\r\n\x1a\n",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
)  # fmt: skip

_ZIPPED, _PICKLED = (structures.zip_edit,), (structures.pickle_edit,)
PARSERS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("pickle", examine.pickled, _PICKLED, _PICKLE),
        Target("torch-zip", examine.file, _ZIPPED, (*_PICKLE, *_ZIP)),
        Target("torch-legacy", examine.file, _PICKLED, _PICKLE),
        Target("torch-export", examine.file, _ZIPPED, (*_JSON, *_ZIP)),
        Target("distcp", examine.file, (*_PICKLED, *_ZIPPED), (*_PICKLE, *_ZIP)),
        Target("deepspeed", examine.file, _ZIPPED, (*_PICKLE, *_ZIP)),
        Target("hdf5", examine.file, (), _HDF5),
        Target("onnx", examine.file, (structures.protobuf_edit,), _ONNX),
        Target("flax", examine.file, (structures.flax_edit,), _FLAX),
        Target("gguf", examine.file, (), _GGUF),
        Target("npz", examine.file, _ZIPPED, (*_NPY, *_ZIP)),
        Target("npy", examine.file, (structures.npy_edit,), _NPY),
        Target("safetensors", examine.file, (structures.safetensors_edit,), _JSON),
        Target("sharded", examine.file, (structures.safetensors_edit,), _JSON),
        Target("rules", examine.checkpoint, (structures.json_edit,), _JSON),
        Target("unknown", functools.partial(examine.file, companions=True), (), (*_MAGIC, *_ZIP)),
    )
}
"""By name, those first of which most is to be feared."""
