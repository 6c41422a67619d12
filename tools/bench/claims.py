"""What the project says it reaches, checked against the figures of one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arzstream.bench.rounds import Result
from tools.bench.weights import File

__all__ = ["Claim", "claims"]

Measured = Sequence[tuple[File, dict[str, Result]]]
"""Each file with its results by name."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """``got``: the figures; ``holds``: None where nothing was measured that could tell."""

    text: str
    got: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return "NOT MEASURED" if self.holds is None else "PASS" if self.holds else "FALLS SHORT"


def claims(measured: Measured, whole_path: dict[str, Any] | None) -> list[Claim]:
    """Every claim, in the order in which they are made."""
    return [
        *_float_fast(measured),
        *_float_ctx(measured),
        _at_most(measured, "BF16 in F32", 0.33, "fp32 that holds bf16 values: at most 33 %"),
        _at_most(measured, "F8_E4M3", 0.82, "fp8 of Gaussian weights: at most 82 %"),
        *_whole_path(whole_path),
        _all_right(measured),
    ]


def _float_fast(measured: Measured) -> Iterator[Claim]:
    for name in ("minilm-bf16.safetensors", "gaussian-7b-bf16.safetensors"):
        results = _results(measured, name)
        codec, zipnn = results.get("codec float_fast"), results.get("zipnn")
        title = f"float_fast, {name.removesuffix('.safetensors')}"
        yield _speed(f"{title}: decode at least 4 GB/s a core", codec, "decode_one", 4.0)
        copied = codec and codec.to_memcpy("decode_one")
        yield _compare(f"{title}: decode at least 0.45 of memcpy", copied, 0.45, "of memcpy")
        yield _times(f"{title}: decode at least 2.5 × zipnn", codec, zipnn, "decode_one", 2.5)
        yield _speed(f"{title}: encode at least 1.5 GB/s a core", codec, "encode_one", 1.5)
        yield _times(f"{title}: encode at least 4 × zipnn", codec, zipnn, "encode_one", 4.0)
    pairs = [(f.name, r.get("arzstream fast"), r.get("zipnn")) for f, r in measured if f.real]
    yield _no_larger("profile fast: no larger than zipnn on every real file", pairs, strict=False)


def _float_ctx(measured: Measured) -> Iterator[Claim]:
    files = [(f, r) for f, r in measured if f.real and f.kind in ("BF16", "F16")]
    for profile in ("balanced", "max"):
        pairs = [(f.name, r.get(f"arzstream {profile}"), _smallest_peer(r)) for f, r in files]
        text = f"profile {profile}: smaller than every peer's best setting on every real bf16 and fp16 file"
        yield _no_larger(text, pairs, strict=True)
    results = _results(measured, "minilm-bf16.safetensors")
    for profile, most in (("balanced", 0.6575), ("max", 0.656)):
        result = results.get(f"arzstream {profile}")
        ratio = result.ratio if result else None
        got = "" if ratio is None else f"{ratio:.2%}"
        text = f"MiniLM bf16 in {profile}: at most {most:.2%}, everything included"
        yield Claim(text, got, None if ratio is None else ratio <= most)
    for name in ("minilm-bf16.safetensors", "gaussian-7b-bf16.safetensors"):
        codec, title = _results(measured, name).get("codec float_ctx"), name.removesuffix(".safetensors")
        yield _speed(f"float_ctx, {title}: decode at least 1 GB/s a core", codec, "decode_one", 1.0)
        yield _speed(f"float_ctx, {title}: encode at least 0.4 GB/s a core", codec, "encode_one", 0.4)


def _whole_path(found: dict[str, Any] | None) -> Iterator[Claim]:
    texts = (
        "get_tensor of every tensor of a 1 GB archive in the page cache: at least 80 % of the kernels' rate, two cores",
        "its peak memory: at most the tensors and 64 MiB",
    )
    if found is None:
        yield from (Claim(text, "", None) for text in texts)
        return
    share, extra = found["share_warm"], found["extra_bytes"] / 2**20
    rates = (
        f"{share:.0%}: {found['get_tensor_warm']:.2f} of {found['kernels_warm']:.2f} GB/s, both into memory that was "
    )
    rates += f"written before ({found['share_cpu']:.0%} by processor time), {found['archive']}"
    yield Claim(texts[0], rates, share >= 0.8)
    yield Claim(texts[1], f"{extra:.0f} MiB beyond {found['bytes'] / 1e6:.0f} MB of tensors", extra <= 64)


def _all_right(measured: Measured) -> Claim:
    ours = [r for _, results in measured for r in results.values() if r.package == "arzstream"]
    others = sorted({n for _, results in measured for n, r in results.items() if r.state == "wrong" and r not in ours})
    broken = sorted({n for _, results in measured for n, r in results.items() if r.state == "failed" and r not in ours})
    bad = [r.name for r in ours if r.state != "ok"]
    got = f"{len(ours) - len(bad)} of {len(ours)} of arzstream's are right"
    got += f"; peers with wrong bytes: {', '.join(others) or 'none'}; peers that failed: {', '.join(broken) or 'none'}"
    return Claim("every round trip compared bit for bit", got, None if not ours else not bad)


def _results(measured: Measured, name: str) -> dict[str, Result]:
    return next((results for file, results in measured if file.name == name), {})


def _smallest_peer(results: dict[str, Result]) -> Result | None:
    """The peer with the smallest ratio, of those that saw the whole file."""
    peers = [r for r in results.values() if r.package not in ("arzstream", "numpy") and r.ratio and not r.note]
    return min(peers, key=lambda r: r.ratio or 1, default=None)


def _speed(text: str, result: Result | None, direction: str, least: float) -> Claim:
    return _compare(text, result and result.speed(direction), least, "GB/s")


def _compare(text: str, value: float | None, least: float, unit: str) -> Claim:
    return Claim(text, "" if value is None else f"{value:.2f} {unit}", None if value is None else value >= least)


def _times(text: str, one: Result | None, other: Result | None, direction: str, least: float) -> Claim:
    a, b = (result and result.speed(direction) for result in (one, other))
    if not a or not b:
        return Claim(text, "", None)
    return Claim(text, f"{a / b:.2f} ×: {a:.2f} and {b:.2f} GB/s", a / b >= least)


def _no_larger(text: str, pairs: Sequence[tuple[str, Result | None, Result | None]], *, strict: bool) -> Claim:
    """Compare ratios file by file; the figures are those of the files where it does not hold, else of the closest."""
    known = [(f, a, b, a.ratio, b.ratio) for f, a, b in pairs if a and b and a.ratio and b.ratio]
    if not known:
        return Claim(text, "", None)
    good: Callable[[float, float], bool] = (lambda a, b: a < b) if strict else (lambda a, b: a <= b)
    shown = [one for one in known if not good(one[3], one[4])]
    holds = not shown
    if holds:
        shown = [min(known, key=lambda one: one[4] - one[3])]
    listed = "; ".join(f"{f} {_both(a, x)} and {y:.2%} ({b.name})" for f, a, b, x, y in shown)
    where = "closest: " if holds else f"not on {len(shown)} of {len(known)}: "
    return Claim(text, where + listed, holds)


def _both(result: Result, ratio: float) -> str:
    """The archive, and the payloads in it: peers that code buffers keep no names, shapes, digests and index."""
    return (
        f"{ratio:.2%} ({result.payload / result.nbytes:.2%} without the container)"
        if result.payload
        else f"{ratio:.2%}"
    )


def _at_most(measured: Measured, kind: str, most: float, text: str) -> Claim:
    """The ratio of profile balanced on every file of a kind."""
    found = {f.name: r["arzstream balanced"].ratio for f, r in measured if f.kind == kind and "arzstream balanced" in r}
    known = {name: ratio for name, ratio in found.items() if ratio is not None}
    got = "; ".join(f"{name} {ratio:.2%}" for name, ratio in known.items())
    return Claim(text, got, None if not known else all(ratio <= most for ratio in known.values()))
