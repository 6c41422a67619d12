"""Checkpoints of training runs, each given the one before it: ``python -m tools.measure.delta``.

Trains the demo's GPT in several ways (``--run`` chooses, ``--folder`` keeps the checkpoints, and a run that is there is
not trained again), and goes on at a rate at which about a hundredth of the bf16 weights change. For each pair of
checkpoints it prints what the newer one takes given the older one: XOR, byte planes and zstd -3; every other program
that is installed; and whole archives of arzstream, everything included, which are unpacked and compared with the
original. Then whether what the project promises holds. ``--large 1e9`` also packs checkpoints made that large, for the
speed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.measure.checks import Checks
from tools.measure.delta_archives import Archived, chain, enlarged
from tools.measure.delta_peers import PEERS, Peer, byte_tensors, installed, ordered, silence, xor_zstd
from tools.measure.training_runs import Run, add_options, chosen, ensure

PROFILES, PAIRS = ("balanced", "max"), ("10", "50", "slow")
CHAIN = 4
"""Archives in a row: no profile codes against more than three."""
DECODED, ENCODED, LARGE = 0.8e9, 0.15e9, 1e9
"""Bytes per second of one core that are promised; the latter for checkpoints of ``LARGE`` bytes."""


class Pair(NamedTuple):
    """Two checkpoints, the newer one first, and those before them. ``most`` is what is promised: by profile, of XOR and
    zstd."""

    title: str
    line: tuple[Path, ...]
    most: dict[str, float]
    slow: bool = False

    @property
    def new(self) -> Path:
        return self.line[0]

    @property
    def parent(self) -> Path:
        return self.line[1]


class Changes(NamedTuple):
    """``share`` of the weights that changed; entropies at order 0 in bits per weight."""

    share: float
    map_bits: float
    value_bits: float

    @property
    def bits(self) -> float:
        return self.map_bits + self.value_bits


def pairs(run: Run, last: int) -> dict[str, Pair]:
    def line(paths: Iterable[Path]) -> tuple[Path, ...]:
        return tuple(path for path in paths if path.exists())

    ten, fifty = (line(run.at(last - k * apart) for k in range(CHAIN)) for apart in (10, 50))
    slow = line(run.slow(number) for number in range(CHAIN, 0, -1))
    return {
        "10": Pair("10 steps apart", ten, {"balanced": 0.69, "max": 0.67}),
        "50": Pair("50 steps apart", fifty, {"balanced": 0.80, "max": 0.80}),
        "slow": Pair(f"low rate ({run.notes['slow_rate']:.3g})", slow, {}, slow=True),
    }


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits of each of what was counted, at order 0."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


def changes(new: Path, parent: Path) -> Changes:
    """How many weights changed; entropies of the map that says which, and of the changes themselves, all tensors
    together: as XORs or as differences of ordered integers, whichever have less."""
    weights, xors, steps = 0, [], []
    for (*_, size, data), (*_, before) in zip(byte_tensors(new), byte_tensors(parent), strict=True):
        words = data.view(f"<u{size}") ^ before.view(f"<u{size}")
        weights += len(words)
        xors.append(words[words != 0].astype(np.int64))
        steps.append((ordered(data, size) - ordered(before, size))[words != 0].astype(np.int64))
    bits = min(entropy(np.unique(np.concatenate(values), return_counts=True)[1]) for values in (xors, steps))
    changed = sum(len(values) for values in xors)
    share = changed / weights
    return Changes(share, entropy(np.array([changed, weights - changed])), share * bits)


def measure(pair: Pair, peers: Sequence[Peer], profiles: Sequence[str], check: Checks) -> None:
    raw = sum(data.nbytes for *_, data in byte_tensors(pair.new))
    weights = sum(data.nbytes // size for *_, size, data in byte_tensors(pair.new))
    change, xor = changes(pair.new, pair.parent), xor_zstd(pair.new, pair.parent)

    def row(title: str, nbytes: float, more: str = "") -> None:
        bits = f"{nbytes / raw:8.2%}{8 * nbytes / weights:10.4f}{nbytes / xor:9.3f}"
        print(f"    {title:32}{round(nbytes):14,}{bits}{more}", flush=True)

    print(f"\n  {pair.title}: {pair.parent.name} -> {pair.new.name}, {change.share:.2%} of {weights:,} weights changed")
    print(f"    {'':32}{'bytes':>14}{'of raw':>8}{'bits each':>10}{'of XOR':>9}")
    row("XOR, byte planes, zstd -3", xor)
    stored = {}
    for peer in peers:
        with tempfile.TemporaryDirectory() as scratch, silence():
            stored[peer.title] = peer.stored(pair.new, pair.parent, Path(scratch))
        row(peer.title, stored[peer.title])
    row("map of changes, order 0", change.map_bits * weights / 8)
    row("values of changes, order 0", change.value_bits * weights / 8)
    row("map and values", change.bits * weights / 8)
    for profile in profiles:
        with tempfile.TemporaryDirectory() as scratch:
            made = chain(pair.line[::-1], profile, Path(scratch))
        row(f"arzstream {profile}", made.bytes_out)
        speeds(made)
        promises(pair, profile, made, xor, stored, change, weights, check)


def speeds(made: Archived) -> None:
    """GB/s of one core."""
    print(
        f"      GB/s of one core: learning and encoding {made.coding / 1e9:.3f}, "
        f"all of packing and proving {made.packing / 1e9:.3f}; "
        f"delta_ctx decoding {made.decoding / 1e9:.3f}, all of unpacking {made.unpacking / 1e9:.3f}"
        f" ({made.changes / max(1, made.changes + made.others):.1%} of the bytes are its)",
        flush=True,
    )


def promises(
    pair: Pair,
    profile: str,
    made: Archived,
    xor: int,
    stored: dict[str, int],
    change: Changes,
    weights: int,
    check: Checks,
) -> None:
    title = f"{pair.title}, {profile}"
    if profile in pair.most:
        most = pair.most[profile]
        check(made.bytes_out <= most * xor, f"{title}: {made.bytes_out / xor:.3f} of XOR, at most {most}")
    if pair.slow:
        bits = 8 * made.bytes_out / weights
        check(bits <= 0.10, f"{title}: {bits:.4f} bits per weight, at most 0.10")
        check(bits < change.bits, f"{title}: {bits:.4f} bits per weight, less than map and values, {change.bits:.4f}")
    if stored:
        best = min(stored, key=stored.__getitem__)
        check(made.bytes_out < stored[best], f"{title}: smaller than the smallest other, {best}")


def large(run: Run, pair: Pair, nbytes: int, check: Checks) -> None:
    """Speeds in ``balanced`` with checkpoints that hold the run's tensors again and again."""
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        sources = [Path(folder) / source.name for source in pair.line[2::-1]]
        for source, enlarge in zip(pair.line[2::-1], sources, strict=True):
            enlarged(source, enlarge, nbytes)
        print(f"\n  {pair.title}, the tensors again and again: {sources[-1].stat().st_size:,} bytes", flush=True)
        made = chain(sources, "balanced", Path(folder))
    print(f"    {'arzstream balanced':32}{made.bytes_out:14,}{made.bytes_out / made.bytes_in:8.2%}")
    speeds(made)
    check(made.decoding >= DECODED, f"delta_ctx decodes {made.decoding / 1e9:.3f} GB/s, at least 0.8")
    if made.bytes_in >= LARGE:
        check(made.coding >= ENCODED, f"{made.coding / 1e9:.3f} GB/s encoded, learning included, at least 0.15")


def describe(name: str, run: Run, recipe: str) -> None:
    steps = "; ".join(f"step {step}: {rate:.3g}, {loss:.3f}" for step, rate, loss in run.notes["rates"])
    print(f"\n{name}: {recipe}")
    print(f"  {run.notes['parameters']:,} parameters; learning rate, and loss in nats per token, after")
    print(f"  {steps}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--pair", action="append", choices=PAIRS, help="may be given several times (all)")
    parser.add_argument("--profile", action="append", choices=PROFILES, help="may be given several times (both)")
    parser.add_argument("--peers", help="comma-separated, or none (all that are installed)")
    parser.add_argument("--large", type=float, help="also the speed with checkpoints of so many bytes, 1e9 for example")
    args = parser.parse_args()
    wanted = [p for p in PEERS if args.peers is None or p.title in args.peers.split(",")]
    (peers, missing), check = installed(wanted), Checks()
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)} (tools/bench/install installs them)")
    profiles = args.profile or PROFILES
    with tempfile.TemporaryDirectory() as temporary:
        for name, recipe in chosen(args).items():
            run = ensure(recipe, (args.folder or Path(temporary)) / name, args.device)
            describe(name, run, recipe.describe())
            found = pairs(run, recipe.steps)
            for key in args.pair or found:
                measure(found[key], peers, profiles, check)
            if args.large:
                large(run, found["10"], int(args.large), check)
    print()
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
