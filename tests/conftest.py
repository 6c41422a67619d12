"""What holds for every test: its own home folder, no network, no luck, and no silent skip."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from arzstream.testing.distributed import write_checkpoints

# Set before anything imports torch or a Hub client, and inherited by every process that a test starts. One thread
# each: pytest runs as many tests at once as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# A shell ignores some signals for what it runs in the background, and so would every process that a test starts.
for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)

# The machine may be busy, so a slow example is no failure; and the same examples everywhere, so a failure can be
# repeated. `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("default")

# A skip is allowed for what no installation can bring to this machine, and its reason says so with these words.
IMPOSSIBLE_HERE = "impossible here:"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: measures time or memory; runs by itself, after the others")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep journals, caches and settings of the person who runs the tests out of them."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    for name in ("ARZ_CONFIG", "ARZ_LOG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that two processes wrote: two steps of each kind, and the whole weights; not to be changed."""
    place = tmp_path_factory.mktemp("ranks")
    write_checkpoints(place, ranks=2, steps=2)
    return place


def _strict(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Under tools/test, a test that was skipped for want of something fails and says what is wanting."""
    if not os.environ.get("ARZ_TEST_STRICT") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if IMPOSSIBLE_HERE not in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped, which tools/test does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _strict(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _strict(report)
    return report
