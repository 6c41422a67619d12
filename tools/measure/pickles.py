"""What it takes to follow pickles: ``python -m tools.measure.pickles``.

Prints, for checkpoints that torch writes and for hostile pickles as long as they may be, opcodes, the work that is
charged for them, seconds of the processor and the largest memory that was in use. Each is followed in a process of its
own.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable

import torch

from arzstream.formats.pickle_walk import MAX_WORK

__all__ = ["HOSTILE", "MAX_WORK", "REAL", "measured", "with_adam"]

OPCODES = 4_000_000


def data_pkl(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as file:
        return file.read("archive/data.pkl")


def state_dict(tensors: int) -> bytes:
    return data_pkl({f"model.layers.{i}.mlp.weight": torch.ones(1) for i in range(tensors)})


def with_adam(parameters: int) -> bytes:
    """A state dict and the state of Adam for it."""
    weights = {f"model.layers.{i}.mlp.weight": torch.ones(1) for i in range(parameters)}
    slots = ("exp_avg", "exp_avg_sq", "step")
    state = {i: {slot: torch.ones(1) for slot in slots} for i in range(parameters)}
    groups = [{"lr": 1e-3, "params": list(range(parameters))}]
    return data_pkl({"model": weights, "optimizer": {"state": state, "param_groups": groups}})


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0"
    b"X\x03\0\0\0cpuK\x03tQK\0K\x03\x85K\x01\x85\x89}tR"
)  # fmt: skip


def paths() -> bytes:
    """Each of 60 lists holds the one before it twice: 2^60 paths lead to a tensor."""
    data = b"\x80\x02" + TENSOR
    for i in range(60):
        data += b"q" + bytes([i]) + b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"e"
    return data + b"."


def wide() -> bytes:
    """A list of many references to one list of a thousand tensors."""
    body = b"\x80\x02](" + TENSOR * 1000 + b"eq\x00]("
    return body + b"h\x00" * (OPCODES // 3) + b"e."


def repeated(body: bytes, opcodes: int = 1) -> Callable[[], bytes]:
    return lambda: b"\x80\x02" + body * (OPCODES // opcodes) + b"."


REAL = {
    "state dict, 10,000 tensors": lambda: state_dict(10_000),
    "the same and Adam's state": lambda: with_adam(10_000),
}
HOSTILE = {
    "lists": repeated(b"]"),
    "dicts": repeated(b"}"),
    "None": repeated(b"N"),
    "marks": repeated(b"("),
    "numbers": repeated(b"M\xff\xff"),
    "floats": repeated(b"G" + bytes(8)),
    "long numbers": repeated(b"\x8a\x3f" + b"\x7f" * 63),
    "texts": repeated(b"X\x04\0\0\0abcd"),
    "long texts": repeated(b"X\0\x04\0\0" + b"a" * 1020 + b"\xf0\x9f\x98\x80", 40),
    "tuples": repeated(b"\x85"),
    "calls": repeated(b"))R", 3),
    "globals": repeated(b"c\n\n"),
    "memo": repeated(b"N\x94", 2),
    "persistent": repeated(b"NQ", 2),
    "dict items": lambda: b"\x80\x02}(" + b"M\x01\x02N" * (OPCODES // 2) + b"u.",
    "tensors": lambda: b"\x80\x02](" + TENSOR * (OPCODES // 20) + b"e.",
    "lists in a list": lambda: b"\x80\x02](" + b"]" * OPCODES + b"e.",
    "paths": paths,
    "wide": wide,
}


FOLLOW = """
import re, sys, time
from arzstream.formats.base import Malformed
from arzstream.formats.pickle_walk import Machine
from arzstream.formats.torch_pickle import read_contents
data = sys.stdin.buffer.read()
def most():
    return int(re.search("VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1]) << 10
open("/proc/self/clear_refs", "w").write("5")  # what it was before is forgotten
before = most()
began = time.process_time()
read_contents(data)
print(time.process_time() - began, most() - before)
machine = Machine(data)
try:
    machine.run()
    print(machine.work)
except Malformed:
    print(-1)
"""


def measured(data: bytes) -> tuple[float, int, int]:
    """(seconds, bytes beyond the pickle itself, work or -1 if that was too much) of following ``data``."""
    done = subprocess.run([sys.executable, "-c", FOLLOW], input=data, capture_output=True, check=True)
    seconds, memory, work = done.stdout.split()
    return float(seconds), int(memory), int(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="those whose name holds this")
    args = parser.parse_args()
    print(f"{'pickle':28}{'bytes':>12}{'opcodes':>11}{'work':>11}{'seconds':>9}{'memory':>10}")
    for name, make in {**REAL, **HOSTILE}.items():
        if args.only and args.only not in name:
            continue
        data = make()
        opcodes = f"{sum(1 for _ in pickletools.genops(data)):,}" if name in REAL else ""
        seconds, memory, work = measured(data)
        charged = f"{work:,}" if work >= 0 else "too much"
        print(f"{name:28}{len(data):12,}{opcodes:>11}{charged:>11}{seconds:9.2f}{memory / 1e6:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
