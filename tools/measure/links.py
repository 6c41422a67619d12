"""A link of a given speed between a server on this machine and a client.

Where the kernel lets one (Linux, root or user namespaces), the whole measurement runs in a network of its own, whose
loopback device the kernel slows down: nothing that is measured shares its processor with the link. Elsewhere a proxy
in a process of its own lets so many bytes a second through.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["in_own_network", "link", "moved"]

_MARK = "ARZ_OWN_NETWORK"
QUEUE_SECONDS = 0.25
"""What the slow device holds before it drops packets: less would be measuring how TCP recovers."""
PROXY = """
import sys, threading
from arzstream.testing.proxy import FaultProxy
proxy = FaultProxy(int(sys.argv[1]))
proxy.rate = float(sys.argv[2]) * 1e6 or None
print(proxy.port, flush=True)
sys.stdin.read()
"""


def in_own_network() -> bool:
    """Go on in a network of this process's own: the program is started again there. False where there is none."""
    if _MARK in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return True
    enter = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    tried = "ip link set lo up && tc qdisc replace dev lo root tbf rate 1gbit burst 1mb latency 50ms"
    if not all(map(shutil.which, ("unshare", "ip", "tc"))):
        return False
    if subprocess.run([*enter, "sh", "-c", tried], capture_output=True, check=False).returncode:
        return False
    os.environ[_MARK] = "1"
    os.execvp(enter[0], [*enter, *sys.orig_argv])


@contextlib.contextmanager
def link(port: int, rate: float, own: bool) -> Iterator[int]:
    """The port behind a link of ``rate`` MB/s to ``port``."""
    if own:
        shape = f"tbf rate {rate * 8:.0f}mbit burst {max(256, rate):.0f}kb latency {QUEUE_SECONDS * 1000:.0f}ms"
        subprocess.run(["tc", "qdisc", "replace", "dev", "lo", "root", *shape.split()], check=True)
        try:
            yield port
        finally:
            subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
        return
    process = subprocess.Popen(
        [sys.executable, "-c", PROXY, str(port), str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.communicate()


def moved() -> int:
    """Bytes that the loopback device of this process's network has received, headers included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0
