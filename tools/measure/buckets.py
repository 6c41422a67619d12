"""A run saved to one bucket and archived in another, whatever happens.

    python -m tools.measure.buckets --minutes 10
    python -m tools.measure.buckets --uploads 1 --mib 256

moto is both buckets. A proxy between it and ``arzstream watch`` refuses, resets, cuts off and holds up one request in
``--every``; the daemon is killed (SIGKILL) at random moments and started again. Meanwhile everything that can be seen
under a final name is opened and verified. In the end each checkpoint must have one archive, which gives back what was
saved, nothing else may lie there, and nothing but the journal on the local disk. Prints the daemon's largest peak of
memory.

``--uploads`` instead: so many checkpoints that lie in a folder, one after the other, and the daemon killed ``--kills``
times while it sends the archive of each, at moments that are spread at random over it. Prints how many bytes went over
the wire, beside how many there are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import arzstream
from arzstream.store.backends import connect
from arzstream.store.local import is_temporary
from arzstream.testing import process, tensors
from arzstream.testing.proxy import Fault, FaultProxy, Reset, Stall, Status, Truncate
from arzstream.testing.servers import Server, moto
from tools.measure.checks import Checks

FAULTS: tuple[Fault, ...] = (
    Status(503), Status(500), Status(429), Reset(), Reset(1000), Truncate(100), Truncate(0), Stall(1.0, 100),
)  # fmt: skip
AHEAD = 4000
"""Faults that are drawn at a time."""
SETTLE = 600.0
LIVES = 5


class Uploads:
    """Checkpoints in a folder, archived in a bucket by a daemon that is killed while it sends them."""

    def __init__(self, server: Server, proxy: FaultProxy, work: Path, mib: int, rng: random.Random) -> None:
        self.server, self.proxy, self.work, self.mib, self.rng = server, proxy, work, mib, rng
        self.dest, self.source = f"{server.url}/uploads", work / "source"
        self._store, self._key = connect(self.dest, server.storage_options)
        self.archives = self.sent = self.kills = 0

    def one(self, number: int, kills: int, check: Checks) -> None:
        """A checkpoint, killed so often; then archived."""
        name, rng = f"step-{number}", np.random.default_rng(number)
        folder, shape = self.source / name, (2048, 1024)
        folder.mkdir(parents=True)
        weights = [
            tensors.Tensor(f"layers.{n}.weight", "BF16", shape, tensors.gaussian(shape, "BF16", rng))
            for n in range(max(1, self.mib // 4))
        ]
        (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights))
        moments = sorted(self.rng.uniform(0, 0.66) * (self.mib << 20) for _ in range(kills))
        sent = 0
        for moment in [*moments, float("inf")]:
            sent += self._life(moment - sent)
        size = self._store.head(f"{self._key}/{name}.arz").size
        print(f"{name}: {size / 1e6:.1f} MB, {sent / 1e6:.1f} MB sent, {kills} kills", flush=True)
        arzstream.verify(
            f"{self.dest}/{name}.arz", deep=True, against=folder, storage_options=self.server.storage_options
        )
        found = [path for path, _ in self._store.names(self._key)] + list(self._store.unfinished(self._key))
        check(found == [f"step-{n}.arz" for n in range(number + 1)], "one archive of each, and nothing else")
        self.archives, self.sent, self.kills = self.archives + size, self.sent + sent, self.kills + kills

    def _life(self, until: float) -> int:
        """The daemon, until so many bytes were sent, or it has nothing left to do; how many were."""
        self.proxy.script([])
        env = environment(self.work, self.proxy)
        with process.Daemon(str(self.source), self.dest, "--quiet-time", "0.3", "--once", env=env) as daemon:
            deadline = time.monotonic() + SETTLE
            while daemon.running and self._now() < until and time.monotonic() < deadline:
                time.sleep(0.002)
            if daemon.running:
                daemon.kill()
        return self._now()

    def _now(self) -> int:
        return sum(request.sent_bytes for request in list(self.proxy.requests))


def environment(work: Path, proxy: FaultProxy) -> dict[str, str]:
    """That of a daemon which sees the store through the proxy, and has no place but ``work``."""
    return {
        "XDG_STATE_HOME": str(work / "state"), "TMPDIR": str(work), "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
    }  # fmt: skip


class Campaign:
    """One source, one destination, and how they get on."""

    def __init__(self, server: Server, proxy: FaultProxy, work: Path, every: int, mib: int, rng: random.Random) -> None:
        self.server, self.proxy, self.work, self.every, self.rng = server, proxy, work, every, rng
        self.source, self.dest = f"{server.url}/in", f"{server.url}/out"
        self._store, key = connect(self.source, server.storage_options)
        self._in, self._out = key, key.removesuffix("in") + "out"
        width = 256
        self._weights = tensors.model(layers=max(1, mib // 2), width=width, vocabulary=1024)
        self.saved: list[bytes] = []
        self.verified: set[str] = set()
        self.kills = self.faults = self.peak = 0

    def save(self) -> None:
        """The next checkpoint of the run: each object appears whole, the small one last."""
        step = len(self.saved)
        self._weights = tensors.trained(self._weights, seed=step)
        self.saved.append(tensors.safetensors_bytes(self._weights))
        for name, data in (("model.safetensors", self.saved[-1]), ("config.json", b"{}")):
            upload = self._store.upload(f"{self._in}/step-{step}/{name}")
            upload.part(0, memoryview(data), True)
            upload.finish()

    def life(self, kill: bool) -> None:
        """The daemon, until it is killed at a random moment, or has nothing left to do."""
        faults = [self.rng.choice(FAULTS) if self.rng.randrange(self.every) == 0 else None for _ in range(AHEAD)]
        self.proxy.script(faults)
        env = environment(self.work, self.proxy)
        once = () if kill else ("--once",)
        with process.Daemon(self.source, self.dest, "--quiet-time", "0.5", "--rescan", "1", *once, env=env) as daemon:
            until = time.monotonic() + (self.rng.uniform(1.0, 24.0) if kill else SETTLE)
            while daemon.running and time.monotonic() < until:
                self._note(daemon)
                time.sleep(0.1)
            if kill:
                daemon.kill()
                self.kills += 1
        used = faults[: AHEAD - len(self.proxy.faults)]
        self.faults += sum(fault is not None for fault in used)

    def _note(self, daemon: process.Daemon) -> None:
        with contextlib.suppress(OSError):  # it has ended
            for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    self.peak = max(self.peak, int(line.split()[1]) << 10)
        for name in self.archives():
            if name not in self.verified:
                arzstream.verify(f"{self.dest}/{name}", storage_options=self.server.storage_options)
                self.verified.add(name)

    def names(self) -> list[str]:
        return sorted(name for name, _ in self._store.names(self._out, deep=True))

    def archives(self) -> list[str]:
        return [name for name in self.names() if not is_temporary(os.path.basename(name))]

    def judge(self, check: Checks) -> int:
        """What must hold in the end."""
        expected = sorted(f"step-{step}.arz" for step in range(len(self.saved)))
        check(self.names() == expected, f"{len(expected)} checkpoints, one archive of each, and nothing else")
        left = [name for name in self._store.unfinished(self._out) if is_temporary(os.path.basename(name))]
        check(not left, "no upload to a temporary name is left unfinished")
        good = 0
        for step, data in enumerate(self.saved):
            with arzstream.open(f"{self.dest}/step-{step}.arz", self.server.storage_options) as archive:
                good += archive.read_file("model.safetensors") == data
        check(good == len(self.saved), "all give back what was saved")
        kept = max(p.stat().st_size for p in self.work.rglob("*") if p.is_file() and p.name != "moto.log")
        check(kept < 4 << 20, f"the largest local file has {kept} bytes: no copy of anything")
        return check.status()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=12, help="one request in so many goes wrong [12]")
    parser.add_argument("--mib", type=int, default=16, help="of weights, about [16]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--uploads", type=int, default=0, help="count what is sent of so many checkpoints instead")
    parser.add_argument("--kills", type=int, default=4, help="of each upload [4]")
    options = parser.parse_args(arguments)
    rng, started = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, moto(Path(folder)) as server, FaultProxy(server.port) as proxy:
        if options.uploads:
            return count_uploads(Uploads(server, proxy, Path(folder), options.mib, rng), options.uploads, options.kills)
        campaign = Campaign(server, proxy, Path(folder), options.every, options.mib, rng)
        while time.monotonic() - started < options.minutes * 60:
            campaign.save()
            campaign.life(kill=True)
            archived = len(campaign.archives())
            print(f"{len(campaign.saved)} saved, {archived} archived, {campaign.kills} kills", flush=True)
        for _ in range(LIVES):  # one may end with something that waits for its next try
            campaign.life(kill=False)
            if len(campaign.archives()) == len(campaign.saved):
                break
        print(f"{campaign.faults} faults, {campaign.kills} kills; peak of the daemon {campaign.peak >> 20} MiB")
        return campaign.judge(Checks())


def count_uploads(uploads: Uploads, number: int, kills: int) -> int:
    check = Checks()
    for one in range(number):
        uploads.one(one, kills, check)
    again = uploads.sent - uploads.archives
    print(
        f"{uploads.kills} kills: {uploads.archives / 1e6:.1f} MB of archives, {uploads.sent / 1e6:.1f} MB sent, "
        f"{again / 1e6:.1f} MB ({again / uploads.archives:.1%}) of it again, {again / 1e6 / uploads.kills:.1f} a kill"
    )
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
