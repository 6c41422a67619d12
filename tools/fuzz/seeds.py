"""Small files and folders of every format, written by the libraries that everybody writes them with."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

__all__ = ["SOURCES", "Files", "Seed"]

Files = dict[bytes, bytes]
"""Contents by path, relative to the checkpoint."""

Seed = tuple[bytes, Files]
"""The path of the file that is read, and all files of its checkpoint."""


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save makes of it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def torch_value() -> dict[str, Any]:
    """A tensor, a view of it, a scalar, arrays, an optimiser's state."""
    base = torch.arange(24.0).reshape(4, 6)
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 6), "exp_avg_sq": torch.ones(4, 6)}}
    return {
        "model": {"w": base, "t": base.t(), "row": base[1:3, 2:], "b": torch.ones(5, dtype=torch.bfloat16)},
        "optimizer": {"state": state, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]},
        "array": np.arange(600.0, dtype=np.float32).reshape(20, 30), "step": 7, "name": "a" * 20,
    }  # fmt: skip


def _alone(name: bytes, data: bytes) -> Seed:
    return name, {name: data}


def safetensors() -> Iterator[Seed]:
    import safetensors.torch as st

    weights = {"layers.0.w": torch.ones(3, 2, dtype=torch.bfloat16), "norm": torch.ones(5), "e": torch.empty(0)}
    yield _alone(b"model.safetensors", st.save(weights, {"format": "pt"}))
    yield _alone(b"model.safetensors", st.save({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}))
    yield _alone(b"blob", st.save({"h.0.w": torch.ones(2, 2), "h.1.w": torch.ones(2, 2), "i": torch.ones(1).long()}))


def torch_zip() -> Iterator[Seed]:
    yield _alone(b"optimizer.pt", saved(torch_value()))
    yield _alone(b"model.bin", saved({"a": torch.ones(3), "s": torch.ones(2, 2).to_sparse()}))
    yield _alone(b"p.pth", saved(torch.nn.Linear(2, 3).state_dict(), pickle_protocol=4))
    yield _alone(b"q.ckpt", saved({"q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), buffer)
    yield _alone(b"script.pt", buffer.getvalue())


def torch_legacy() -> Iterator[Seed]:
    for value in (torch_value(), [torch.ones(2, dtype=torch.int8), torch.ones(3)]):
        for protocol in (2, 4):
            options: dict[str, Any] = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
            yield _alone(b"pytorch_model.pth", saved(value, **options))


def torch_export() -> Iterator[Seed]:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3, 2))
            self.register_buffer("c", torch.ones(2, dtype=torch.bfloat16))

        def forward(self, x: Any) -> Any:
            return x @ self.w + self.c

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Small(), (torch.ones(1, 3),)), buffer)
    yield _alone(b"model.pt2", buffer.getvalue())


def pickles() -> Iterator[Seed]:
    """What the walkers get: ``data.pkl`` of files of torch.save, and ``.metadata``."""
    from tools.fuzz.structures import members

    for make in (torch_zip, torch_export):
        for _, files in make():
            for data in files.values():
                for name, content in members(data):
                    if name.endswith(".pkl"):
                        yield _alone(b"data.pkl", content)
    for _, files in distcp():
        if b".metadata" in files:
            yield _alone(b"data.pkl", files[b".metadata"])


def distcp() -> Iterator[Seed]:
    """Written by one process; in a second folder the metadata say that each tensor is a block of a larger one."""
    import pickle

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

    value = {"w": torch.ones(4, 3), "b": torch.ones(2, dtype=torch.bfloat16), "step": 3}
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(value, checkpoint_id=folder, no_dist=True)
        files = {path.name.encode(): path.read_bytes() for path in Path(folder).iterdir()}
    part = next(path for path in files if path.endswith(b".distcp"))
    yield part, files
    metadata = pickle.loads(files[b".metadata"])  # noqa: S301  our own
    for whole in metadata.state_dict_metadata.values():
        if isinstance(whole, TensorStorageMetadata):
            whole.size = torch.Size((2 * whole.size[0], *whole.size[1:]))
            whole.chunks.append(ChunkStorageMetadata(torch.Size((whole.size[0] // 2,)), torch.Size((1,))))
    yield part, {**files, b".metadata": pickle.dumps(metadata)}
    yield part, {part: files[part]}


def deepspeed() -> Iterator[Seed]:
    from arzstream.testing.zero import write_zero

    weights = {"a": torch.randn(3, 2), "b": torch.randn(8)}
    for stage in (2, 3):
        with tempfile.TemporaryDirectory() as folder:
            write_zero(Path(folder), weights, {"exp_avg": weights}, ranks=2, stage=stage)
            files = {path.name.encode(): path.read_bytes() for path in (Path(folder) / "global_step1").iterdir()}
        yield b"bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", files


def sharded() -> Iterator[Seed]:
    """As torch.distributed.checkpoint writes them: the metadata of two ranks' files."""
    import safetensors.torch as st

    files = {}
    for rank in range(2):
        info = {"w": {"saved_offsets": [2 * rank, 0]}, "n": {"saved_offsets": [0]}}
        metadata = {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0"}
        tensors = {"w": torch.ones(2, 3), **({"n": torch.ones(4)} if not rank else {})}
        files[b"shard-%05d-model-00001-of-00001.safetensors" % rank] = st.save(tensors, metadata)
    yield next(iter(files)), files


def gguf() -> Iterator[Seed]:
    from gguf import GGMLQuantizationType, GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_uint32("llama.block_count", 2)
        writer.add_array("tokens", ["a", "", "b c"])
        writer.add_array("scores", [1.0, 2.0])
        writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
        writer.add_tensor("norm", np.ones(8, np.float16))
        for number, (kind, size) in enumerate(((GGMLQuantizationType.Q4_0, 18), (GGMLQuantizationType.Q8_0, 34))):
            writer.add_tensor(f"blk.{number}.w", np.zeros((2, size), np.uint8), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield _alone(b"model.gguf", path.read_bytes())


def npy() -> Iterator[Seed]:
    for array in (np.asfortranarray(np.ones((3, 2), np.float32)), np.float64(2), np.zeros(3, "i2,f4"), np.zeros(0)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield _alone(b"a.npy", buffer.getvalue())
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ones(3), version=(3, 0))
    yield _alone(b"a.npy", buffer.getvalue())


def npz() -> Iterator[Seed]:
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, w=np.ones((3, 2), np.float16), **{"layers.0.b": np.ones(5), "mask": np.ones(3, bool)})
        yield _alone(b"model.npz", buffer.getvalue())


def onnx() -> Iterator[Seed]:
    import onnx as library

    helper, tensor = library.helper, library.numpy_helper.from_array
    inner = helper.make_graph([], "inner", [], [], initializer=[tensor(np.ones(4, np.float16), "h")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor(np.arange(30, dtype=np.float32))),
        helper.make_node("If", ["x"], ["y"], "choice", then_branch=inner),
    ]
    sparse = helper.make_sparse_tensor(tensor(np.ones(2, np.float32), "s"), tensor(np.arange(2, dtype=np.int64)), [9])
    typed = helper.make_tensor("typed", library.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    elsewhere = library.TensorProto(name="far", dims=[5], data_type=1, data_location=1)
    for key, text in (("location", "model.data"), ("offset", "0"), ("length", "20")):
        elsewhere.external_data.add(key=key, value=text)
    weights = [tensor(np.ones((3, 2), np.float32), "layers.0.w"), typed, elsewhere]
    graph = helper.make_graph(nodes, "g", [], [], initializer=weights, sparse_initializer=[sparse])
    data = bytes(helper.make_model(graph, producer_name="test").SerializeToString())
    yield b"model.onnx", {b"model.onnx": data, b"model.data": bytes(20)}
    yield _alone(b"graph.bin", data)


def flax() -> Iterator[Seed]:
    import msgpack

    def array(values: Any) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))

    tree = {"params": {"Dense_0": {"kernel": array(np.ones((2, 3), np.float32)), "bias": array(np.ones(3))}}}
    yield _alone(b"flax_model.msgpack", msgpack.packb({**tree, "step": 70000, "names": ["a", "b"], "none": None}))
    yield _alone(b"state", msgpack.packb({**tree, "opt": {"0": {"mu": array(np.ones(3, np.float16))}}}))


def hdf5() -> Iterator[Seed]:
    import h5py

    for libver in (None, "latest"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=libver) as file:
            for number in range(3):
                file[f"layers/{number}/kernel"] = np.ones((6, 30), (np.float32, np.float16, np.int64)[number])
            file["scalar"] = np.float64(1)
            file.attrs["a"] = "text"
            file["soft"] = h5py.SoftLink("/scalar")
        yield _alone(b"model.h5", buffer.getvalue())


def unknown() -> Iterator[Seed]:
    """Without structure, and with one that is told by the first bytes; long enough to be looked at."""
    rng = np.random.default_rng(1)
    floats = (rng.standard_normal(40_000) * 0.02).astype(np.float32)
    for name, data in (
        ("dump.bin", floats.tobytes()), ("half.bin", floats.astype(np.float16).tobytes() + bytes(60_000)),
        ("x.gz", gzip.compress(floats.tobytes())), ("x.xz", lzma.compress(floats.tobytes()[:140_000], preset=0)),
        ("x.bz2", bz2.compress(floats.tobytes())), ("noise", rng.bytes(135_000)), ("text.cfg", b"a = 1\n" * 22_000),
        ("small", b"few bytes"), ("v.webp", b"RIFF0000WEBP" + rng.bytes(132_000)),
    ):  # fmt: skip
        yield _alone(name.encode(), data)


def folders() -> Iterator[Seed]:
    """Checkpoints as each writer leaves them, for the rules of completeness. No one file is read."""
    import safetensors.torch as st

    shards = {}
    for number in (1, 2):
        shards[b"model-%05d-of-00002.safetensors" % number] = st.save({f"w{number}": torch.ones(2)})
    weight_map = {f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    index = {"metadata": {"total_size": 16}, "weight_map": weight_map}
    pretrained = {**shards, b"model.safetensors.index.json": json.dumps(index).encode(), b"config.json": b"{}"}
    small = saved({"step": 1})
    yield b"", pretrained
    ranks = {b"rng_state_%d.pth" % rank: small for rank in range(2)}
    trained = {**pretrained, **ranks, b"optimizer.pt": small, b"trainer_state.json": b'{"global_step": 7}'}
    yield b"", trained
    processes = saved(SimpleNamespace(distributed_state=SimpleNamespace(num_processes=2)))
    yield b"", {**trained, b"training_args.bin": processes}
    whole = st.save({"w": torch.ones(2)})
    yield b"", {b"model.safetensors": whole, b"optimizer.bin": small, b"random_states_0.pkl": b"x"}
    _, parts = next(distcp())
    yield b"", parts
    yield b"", {**parts, b"common.pt": small, b"metadata.json": b'{"sharded_backend": "torch_dist"}'}
    yield b"", {**parts, b"meta.pt": small}
    yield b"", {b"mp_rank_00_%03d/model_optim_rng.pt" % rank: small for rank in range(2)}
    _, zero = next(deepspeed())
    yield b"", {**{b"global_step1/" + path: data for path, data in zero.items()}, b"latest": b"global_step1"}
    ranks_known = saved({"module": {}, "optimizer": None, "dp_world_size": 2, "mp_world_size": 1})
    yield b"", {**zero, b"mp_rank_00_model_states.pt": ranks_known}
    yield b"", {b"_CHECKPOINT_METADATA": b'{"commit_timestamp_nsecs": 17}', b"d/0": b"x", b"commit_success.txt": b""}
    yield b"", {b"model.safetensors": whole}


SOURCES: dict[str, Callable[[], Iterator[Seed]]] = {
    "pickle": pickles, "torch-zip": torch_zip, "torch-legacy": torch_legacy, "torch-export": torch_export,
    "distcp": distcp, "deepspeed": deepspeed, "hdf5": hdf5, "onnx": onnx, "flax": flax, "gguf": gguf, "npz": npz,
    "npy": npy, "safetensors": safetensors, "sharded": sharded, "rules": folders, "unknown": unknown,
}  # fmt: skip
"""By parser, in order of how much a file can say."""
