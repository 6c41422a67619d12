"""The scripts say what is wrong in one line, and the suite neither skips in silence nor loses a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run(
    *command: str | Path, cwd: Path | None = None, strict: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    variables.pop("ARZ_TEST_STRICT", None)
    if strict:
        variables["ARZ_TEST_STRICT"] = "1"
    return subprocess.run(
        command, cwd=cwd, env=variables, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def scripts(repository: Path, tmp_path: Path) -> Path:
    """A repository with the scripts and nothing else, no environment in particular."""
    shutil.copytree(repository / "tools", tmp_path / "clone" / "tools")
    shutil.copytree(repository / ".ci", tmp_path / "clone" / ".ci")
    return tmp_path / "clone"


@pytest.mark.parametrize("script", ["tools/start", "tools/test", ".ci/run"])
def test_a_missing_python_is_one_line_that_says_what_to_do(scripts: Path, script: str) -> None:
    done = run(scripts / script, PYTHON="/bin/false")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no Python 3.10 or newer")


@pytest.mark.parametrize(
    "script",
    [
        "tools/start",
        "tools/test",
        "tools/bench/install",
        "tools/servers/install",
        "tools/servers/install_vllm",
        ".ci/run",
    ],
)
def test_the_scripts_can_be_run(repository: Path, script: str) -> None:
    assert os.access(repository / script, os.X_OK)
    assert run("bash", "-n", repository / script).returncode == 0


def test_start_with_one_folder_says_how_it_is_used(scripts: Path) -> None:
    done = run(scripts / "tools" / "start", "runs")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ./tools/start [SOURCE DEST")


SKIPS = {
    "test": "import pytest\ndef test_it():\n    pytest.skip('no such tool')\n",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no such tool')\ndef test_it(): pass\n",
    "module": "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('no such tool')\ndef test_it(f): pass\n",
}


def pytest_in(folder: Path, repository: Path, text: str, strict: bool) -> subprocess.CompletedProcess[str]:
    shutil.copy(repository / "tests" / "conftest.py", folder)
    (folder / "test_it.py").write_text(text)
    return run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", cwd=folder, strict=strict)


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_fails_under_the_test_script(repository: Path, tmp_path: Path, kind: str) -> None:
    assert "1 skipped" in pytest_in(tmp_path, repository, SKIPS[kind], strict=False).stdout
    done = pytest_in(tmp_path, repository, SKIPS[kind], strict=True)
    assert done.returncode != 0
    assert "which tools/test does not allow" in done.stdout
    assert "no such tool" in done.stdout or "no_such_module" in done.stdout


def test_what_no_installation_can_bring_may_be_skipped(repository: Path, tmp_path: Path) -> None:
    text = SKIPS["test"].replace("no such tool", "impossible here: this processor has no AVX-512")
    assert pytest_in(tmp_path, repository, text, strict=True).returncode == 0


@pytest.mark.parametrize(
    ("tests", "closing", "status"),
    [
        ("def test_a(): pass\n", "1 passed, 0 failed", 0),
        ("def test_a(): pass\ndef test_b(): assert False\n", "1 passed, 1 failed", 1),
        ("import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('why')\n", "1 passed, 0 failed, 1 skipped", 0),
        ("import no_such_module\n", "0 passed, 1 failed", 1),
        ("", "0 passed, 1 failed", 1),
    ],
)
def test_the_closing_line_has_the_totals(
    repository: Path, tmp_path: Path, tests: str, closing: str, status: int
) -> None:
    (tmp_path / "test_it.py").write_text(tests)
    text = (repository / "tools" / "run_tests.py").read_text()
    script = tmp_path / "tools" / "run_tests.py"
    script.parent.mkdir()
    runs = f"RUNS = [Run('all', 'numpy', ['--rootdir', {str(tmp_path)!r}])]\n"
    script.write_text(text.replace('if __name__ == "__main__":', runs + 'if __name__ == "__main__":'))
    done = run(sys.executable, script)
    assert done.stdout.splitlines()[-1] == closing
    assert done.returncode == status
