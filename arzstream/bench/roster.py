"""Who can take part: arzstream's profiles and codecs, and the peers by name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import arzstream
from arzstream.archive.pack import PROFILES
from arzstream.bench.contender import Contender, Memcpy, Profile, SingleCodec, codec_called
from arzstream.bench.file_peers import BigSmall, Lmzip
from arzstream.bench.peers import Blosc2, OpenZL, Pcodec, Z4ai, ZipNN, Zstandard
from arzstream.errors import UnsupportedError

__all__ = ["MEMCPY", "PEERS", "Entrant", "codecs", "installed_peers", "peers", "profiles", "version"]


class Entrant(NamedTuple):
    """A contender that has not been made yet.

    ``share``: how much of the patience with others it is given; less for what is very slow and nowhere the smallest,
    so that it does not fill the run.
    """

    name: str
    package: str
    make: Callable[[], Contender]
    share: float = 1.0


PEERS: dict[str, tuple[Entrant, ...]] = {
    "zipnn": (Entrant("zipnn", "zipnn", ZipNN),),
    "zstandard": (
        Entrant("zstd 3", "zstandard", lambda: Zstandard(3, planes=False)),
        Entrant("zstd 19", "zstandard", lambda: Zstandard(19, planes=False), 0.2),
        Entrant("zstd 3 planes", "zstandard", lambda: Zstandard(3, planes=True)),
        Entrant("zstd 19 planes", "zstandard", lambda: Zstandard(19, planes=True), 0.2),
    ),
    "openzl": (
        Entrant("openzl fse", "openzl", lambda: OpenZL("Fse")),
        Entrant("openzl huffman", "openzl", lambda: OpenZL("Huffman")),
    ),
    "pcodec": (
        Entrant("pcodec 8", "pcodec", lambda: Pcodec(8)),
        Entrant("pcodec 12", "pcodec", lambda: Pcodec(12)),
    ),
    "blosc2": (Entrant("blosc2", "blosc2", Blosc2),),
    "lmzip": (Entrant("lmzip", "lmzip", Lmzip),),
    "bigsmall": (Entrant("bigsmall", "bigsmall", BigSmall),),
    "z4ai": (Entrant("z4ai", "z4ai", Z4ai),),
}
"""Distribution → its contenders, one for each way to use it."""

MEMCPY = Entrant("memcpy", "numpy", Memcpy)


def version(package: str) -> str | None:
    """The version of an installed distribution, None if it is not there."""
    if package == "arzstream":  # which also runs without being installed
        return arzstream.__version__
    if package == "arzstream":  # it need not be installed to run
        return arzstream.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_peers() -> list[str]:
    """Names of the peers that can take part."""
    return [name for name in PEERS if version(name) is not None]


def peers(names: Sequence[str]) -> list[Entrant]:
    """The contenders of these peers. Raises UnsupportedError for one that is not installed, ValueError for
    one that is not known."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"no peer {name!r}; there are {', '.join(PEERS)}")
        if version(name) is None:
            raise UnsupportedError(f"{name} is not installed; pip install {name}, or all peers: tools/bench/install")
    return [entrant for name in names for entrant in PEERS[name]]


def profiles(names: Sequence[str]) -> list[Entrant]:
    """The contenders for profiles. Raises ValueError for one that is not known."""
    for name in names:
        if name not in PROFILES:
            raise ValueError(f"no profile {name!r}; there are {', '.join(PROFILES)}")
    return [Entrant(f"arzstream {name}", "arzstream", partial(Profile, name)) for name in names]


def codecs(names: Sequence[str]) -> list[Entrant]:
    """The contenders for single codecs. Raises ValueError for one that is not known."""
    found = []
    for name in names:
        codec = codec_called(name)
        if codec is None:
            raise ValueError(f"no codec {name!r}; spec/registry.md has their names")
        found.append(Entrant(f"codec {name}", "arzstream", partial(SingleCodec, codec)))
    return found
