"""What was found, as plain values for JSON. The machine is described by whoever prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from arzstream.bench.entropy import Bounds
from arzstream.bench.loading import StoreRate, load_seconds
from arzstream.bench.roster import PEERS, version
from arzstream.bench.rounds import Result
from arzstream.bench.sample import Sample

__all__ = ["describe", "gains"]


def describe(sample: Sample, results: Sequence[Result], bounds: Bounds, *, threads: int, rounds: int) -> dict[str, Any]:
    """The sample, the versions, the bounds and every result. Lengths are in bytes, speeds in GB/s."""
    dtypes: dict[str, int] = {}
    for part in sample.parts:
        dtypes[part.dtype] = dtypes.get(part.dtype, 0) + part.data.nbytes
    return {
        "bytes": sample.nbytes,
        "total": sample.total,
        "sample": sample.note,
        "units": len(sample.parts),
        "dtypes": dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        "versions": {name: version(name) for name in ("arzstream", "numpy", *PEERS)},
        "not_installed": [name for name in PEERS if version(name) is None],
        "threads": threads,
        "rounds": rounds,
        "bounds": dataclasses.asdict(bounds),
        "results": [result.as_dict() for result in results],
    }


def gains(rate: StoreRate, sample: Sample, results: Sequence[Result]) -> dict[str, Any]:
    """Seconds to load everything from the store, raw and compressed, for each profile or codec of arzstream."""
    loads = []
    for result in results:
        decode = result.speed("decode_all") or result.speed("decode_one")
        if result.package == "arzstream" and result.ratio and decode:
            raw, packed = load_seconds(sample.total, result.ratio, rate.gb_per_s, decode)
            loads.append(
                {"name": result.name, "raw": raw, "compressed": packed, "decode": decode, "gain": raw / packed}
            )
    return {**dataclasses.asdict(rate), "loads": loads}
