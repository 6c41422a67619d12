"""Whole checkpoints of a training run, optimiser state included: ``python -m tools.measure.optimiser``.

Trains the demo's GPT (AdamW, checkpoints of bf16 weights, fp32 master weights and both moments every ten steps) and
packs each against the one before it. ``--folder`` keeps the checkpoints, and one that has them is not trained again.
For the last one it prints, by kind of tensor, what is left by XOR with the one before, byte planes and zstd -3; by
arzstream without a parent; and with it, everything included. Then what bf16 weights and their master weights take
together, beside the master weights alone; how fast ``optim_ctx`` is; and what is read of the archives when only the
weights are. ``--peers`` adds what every other program that is installed takes for the same tensors in safetensors,
``--depth N`` what it takes to pack and unpack the last of a chain, link by link.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import arzstream
from arzstream.archive.coder import UnitCoder
from arzstream.archive.decoding import Decoder
from arzstream.archive.pipeline import Given
from arzstream.archive.plan import Planned
from arzstream.codec.best import OPTIM_CTX, encode_best
from arzstream.codec.registry import get
from arzstream.codec.roles import Role
from arzstream.container.directory import UnitEntry
from arzstream.formats.training import part_of
from arzstream.store.ranges import LocalReader
from tools.demo.gpt import Config, Trainer
from tools.demo.saving import save
from tools.measure.delta_peers import PEERS, installed, silence, xor_planes, xor_zstd

KINDS = {Role.OTHER: "bf16 weights", Role.MASTER: "master", Role.MOMENT: "m", Role.SQUARE: "v"}
STATE = ("master", "m", "v")


def train(folder: Path, config: Config, batch: int, steps: list[int], rate: float) -> None:
    """Write the checkpoints of ``steps``, which are ten apart."""
    last = steps[-1]
    trainer = Trainer(config, batch=batch)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"training a GPT of {parameters / 1e6:.1f} M parameters for {last} steps of {batch} windows", flush=True)
    trainer.scheduler.base_lrs = [rate for _ in trainer.scheduler.base_lrs]
    while trainer.step < last:
        loss = trainer.train(10)
        if trainer.step in steps:
            print(f"step {trainer.step}, loss {loss:.3f}", flush=True)
            save(trainer, folder / f"step-{trainer.step:04}", None)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by the names that an archive of it has."""
    found = dict(load_file(folder / "model.safetensors"))
    rest = torch.load(folder / "optimizer.pt", weights_only=True)
    found.update({f"master.{name}": tensor for name, tensor in rest["master"].items()})
    for number, state in rest["optimizer"]["state"].items():
        found.update({f"optimizer.state.{number}.{name}": tensor for name, tensor in state.items() if tensor.dim()})
    return found


def xor_sizes(new: Path, old: Path) -> dict[str, tuple[int, int]]:
    """(bytes, bytes left by XOR, byte planes and zstd -3) of each kind of tensor."""
    before, sizes = tensors_of(old), collections.Counter[str]()
    packed: collections.Counter[str] = collections.Counter()
    for name, tensor in tensors_of(new).items():
        pair = [memoryview(t.contiguous().flatten().view(torch.uint8).numpy()) for t in (tensor, before[name])]
        kind = KINDS[part_of(name).role]
        sizes[kind] += tensor.nbytes
        packed[kind] += xor_planes(*pair, tensor.element_size())
    return {kind: (sizes[kind], packed[kind]) for kind in KINDS.values()}


def archived_sizes(archive: Path) -> dict[str, int]:
    """Bytes of the chunks of each kind of tensor, their headers included."""
    found: collections.Counter[str] = collections.Counter()
    with arzstream.open(archive) as opened:
        for entry in opened.directory.units:
            names = [m.name for m in entry.unit.members if m.name is not None]
            if names and entry.unit.has_chunks:
                table = opened.directory.chunk_table(entry.number)
                found[KINDS[part_of(names[0]).role]] += sum(int(c["stored"]) + 128 for c in table)
    return found


def compare(new: Path, old: Path, parent: Path, child: Path, alone: Path) -> None:
    xor, given, without = xor_sizes(new, old), archived_sizes(child), archived_sizes(alone)
    print(f"\n{old.name} -> {new.name}     share of the original           arzstream by")
    print(f"{'':16}{'bytes':>14}{'XOR zstd':>10}{'alone':>9}{'parent':>9}{'XOR':>9}")
    rows = [*KINDS.values(), "state", "everything"]
    for name in rows:
        kinds = {"state": STATE, "everything": tuple(KINDS.values())}.get(name, (name,))
        raw = sum(xor[k][0] for k in kinds)
        xored, one, two = (sum(x) for x in zip(*((xor[k][1], without[k], given[k]) for k in kinds), strict=True))
        print(f"{name:16}{raw:14,}{xored / raw:10.2%}{one / raw:9.2%}{two / raw:9.2%}{two / xored:9.3f}")
    size = sum(file.stat().st_size for file in new.iterdir())
    print(f"{'archive':16}{size:14,}{'':10}{alone.stat().st_size / size:9.2%}{child.stat().st_size / size:9.2%}")


def pairs(folder: Path, scratch: Path) -> None:
    """Master weights with and without the bf16 weights that are their rounding, without a parent."""
    found = {name: t for name, t in tensors_of(folder).items() if part_of(name).role in (Role.OTHER, Role.MASTER)}
    sizes = []
    for name, wanted in (("master", (Role.MASTER,)), ("pair", (Role.MASTER, Role.OTHER))):
        source = scratch / f"{name}.safetensors"
        save_file({n: t.contiguous() for n, t in found.items() if part_of(n).role in wanted}, source)
        sizes.append(arzstream.pack(source, scratch / f"{name}.arz").bytes_out)
    weights = sum(t.nbytes for n, t in found.items() if part_of(n).role == Role.OTHER)
    print(f"\nmaster weights alone {sizes[0]:,} bytes, with their bf16 weights {sizes[1]:,}:")
    print(f"  {(sizes[1] - sizes[0]) / weights:+.2%} of the weights' {weights:,} bytes")


def others(steps: list[Path], scratch: Path) -> None:
    """The last two checkpoints as safetensors files of all their tensors: what programs take for the newer one."""
    files = [scratch / f"{step.name}.safetensors" for step in steps[-3:]]
    for step, file in zip(steps[-3:], files, strict=True):
        save_file({name: tensor.contiguous() for name, tensor in tensors_of(step).items()}, file)
    *_, old, new = files
    size, (found, missing) = new.stat().st_size, installed(PEERS)
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)} (tools/bench/install installs them)")
    print(f"\nall tensors in safetensors, {size:,} bytes, given the one before:")

    def row(title: str, stored: int) -> None:
        print(f"  {title:32}{stored:14,}{stored / size:9.2%}", flush=True)

    row("XOR, byte planes, zstd -3", xor_zstd(new, old))
    for peer in found:
        with tempfile.TemporaryDirectory() as folder, silence():
            stored = peer.stored(new, old, Path(folder))
        row(peer.title, stored)
    for profile in ("balanced", "max"):
        archives = [scratch / f"{file.stem}-{profile}.arz" for file in files]
        for number, (file, archive) in enumerate(zip(files, archives, strict=True)):
            made = arzstream.pack(file, archive, parent=archives[number - 1] if number else None, profile=profile)
        row(f"arzstream {profile}", made.bytes_out)


@dataclasses.dataclass
class Speed:
    """Bytes, and seconds of the processor, of what is coded with optim_ctx."""

    raw: int = 0
    encoding: float = 0.0
    decoding: float = 0.0

    def add(self, data: memoryview, given: Given) -> None:
        for index in range(len(given.ctx.references)):
            given.ctx.references[index]  # decoded before the clock is started
        began = time.process_time()
        codec, payload = encode_best(data, given.ctx)
        packed = time.process_time()
        if codec == OPTIM_CTX:
            get(codec).decode(memoryview(payload), memoryview(bytearray(len(data))), given.ctx)
            self.raw += len(data)
            self.encoding += packed - began
            self.decoding += time.process_time() - packed


def speed(new: Path, parent: Path, scratch: Path) -> None:
    """Encoding, the choice of the codec included, and decoding, references apart."""
    total, given_by = Speed(), UnitCoder._given

    def timed(coder: UnitCoder, planned: Planned, chunk: int) -> Given:
        given = given_by(coder, planned, chunk)
        job_of = timed_jobs.get(planned)
        if given.ctx.role != Role.OTHER and job_of is not None:
            total.add(memoryview(planned.read_chunk(job_of.read, chunk)), given)
        return given

    timed_jobs: dict[Planned, object] = {}
    code = UnitCoder.code

    def noted(coder: UnitCoder, job: object, planned: Planned) -> None:
        timed_jobs[planned] = job
        code(coder, job, planned)  # type: ignore[arg-type]

    UnitCoder._given, UnitCoder.code = timed, noted  # type: ignore[method-assign, assignment]
    try:
        arzstream.pack(new, scratch / "timed.arz", parent=parent, jobs=1)
    finally:
        UnitCoder._given, UnitCoder.code = given_by, code  # type: ignore[method-assign]
    print(
        f"\noptim_ctx of {total.raw:,} bytes: encoded at {total.raw / total.encoding / 1e9:.3f} GB/s, the choice "
        f"between codecs included; decoded at {total.raw / total.decoding / 1e9:.3f} GB/s"
    )


def reads(archives: list[Path]) -> Iterator[tuple[str, int, int]]:
    """(archive, its size, bytes read of it) when the bf16 weights of the last one are read, and nothing else."""
    counted: collections.Counter[str] = collections.Counter()
    read_at, read_into, tail = LocalReader.read_at, LocalReader.read_into, LocalReader.tail

    def at(self: LocalReader, offset: int, length: int) -> bytes:
        counted[self.name] += length
        return read_at(self, offset, length)

    def into(self: LocalReader, offset: int, buffer: memoryview) -> None:
        counted[self.name] += len(buffer)
        read_into(self, offset, buffer)

    def end(self: LocalReader, length: int) -> tuple[int, bytes]:
        size, data = tail(self, length)
        counted[self.name] += len(data)
        return size, data

    LocalReader.read_at, LocalReader.read_into, LocalReader.tail = at, into, end  # type: ignore[method-assign]
    try:
        with arzstream.open(archives[-1]) as opened:
            for name in opened.keys():  # noqa: SIM118 (an archive is no dict)
                if part_of(name).role == Role.OTHER and opened.get_slice(name).get_dtype() == "BF16":
                    opened.get_tensor(name)
    finally:
        LocalReader.read_at, LocalReader.read_into, LocalReader.tail = (  # type: ignore[method-assign]
            read_at, read_into, tail,
        )  # fmt: skip
    for archive in archives:
        yield archive.name, archive.stat().st_size, counted[str(archive)]


@dataclasses.dataclass
class Link:
    """What one archive of a chain costs: seconds, and bytes decoded by the bytes of the checkpoint."""

    packing: float
    pack_decoded: float
    unpacking: float
    unpack_decoded: float


def link(step: Path, parent: Path | None, archive: Path, back: Path) -> Link:
    decoded, chunk_into, lock = [0], Decoder.chunk_into, threading.Lock()
    size = sum(file.stat().st_size for file in step.iterdir())

    def counted(self: Decoder, entry: UnitEntry, chunk: int, out: memoryview) -> None:
        with lock:
            decoded[-1] += len(out)
        chunk_into(self, entry, chunk, out)

    Decoder.chunk_into = counted  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        arzstream.pack(step, archive, parent=parent)
        packed = time.perf_counter()
        decoded.append(0)
        arzstream.unpack(archive, back)
        unpacked = time.perf_counter()
    finally:
        Decoder.chunk_into = chunk_into  # type: ignore[method-assign]
    shutil.rmtree(back)
    return Link(packed - began, decoded[0] / size, unpacked - packed, decoded[-1] / size)


def chain(steps: list[Path], scratch: Path) -> None:
    """Packs the checkpoints, each against the one before it, and unpacks them: seconds, those at depth 0, and bytes
    decoded of all archives by the bytes of the checkpoint."""
    print("\ndepth     packed in       decoding     unpacked in     decoding")
    links: list[Link] = []
    for depth, step in enumerate(steps):
        parent = scratch / f"depth-{depth - 1}.arz" if depth else None
        links.append(link(step, parent, scratch / f"depth-{depth}.arz", scratch / "back"))
        one, first = links[-1], links[0]
        print(
            f"{depth:5}{one.packing:8.2f} s{one.packing / first.packing:6.1f} x{one.pack_decoded:8.2f} x"
            f"{one.unpacking:8.2f} s{one.unpacking / first.unpacking:6.1f} x{one.unpack_decoded:8.2f} x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoints are, or are kept (a temporary folder)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=6e-4, help="learning rate")
    parser.add_argument("--peers", action="store_true", help="also what other programs take")
    parser.add_argument(
        "--depth", type=int, default=0, metavar="N",
        help="also pack and unpack a chain of N archives behind one, and print what each costs",
    )  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = args.folder or scratch
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [args.steps - 10 * back for back in reversed(range(max(3, args.depth + 1)))]
        saved = [folder / f"step-{number:04}" for number in numbers]
        steps = saved[-3:]
        if not all((step / "optimizer.pt").exists() for step in saved):
            config = Config(layers=args.layers, width=args.width, heads=args.width // 64)
            train(folder, config, args.batch, numbers, args.rate)
        archives = [scratch / f"{step.name}.arz" for step in steps]
        for number, (step, archive) in enumerate(zip(steps, archives, strict=True)):
            arzstream.pack(step, archive, parent=archives[number - 1] if number else None)
        arzstream.pack(steps[-1], scratch / "alone.arz")
        compare(steps[-1], steps[-2], archives[-2], archives[-1], scratch / "alone.arz")
        pairs(steps[-1], scratch)
        speed(steps[-1], archives[-2], scratch)
        print("\nread of the archives, when only the bf16 weights of the last one are:")
        for name, size, read in reads(archives):
            print(f"  {name:16}{read:14,} of {size:14,} bytes")
        if args.peers:
            others(steps, scratch)
        if args.depth:
            chain(saved, scratch)


if __name__ == "__main__":
    main()
