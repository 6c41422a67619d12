"""Libraries that are not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import arzstream
from arzstream.integrations.optional import require


def test_a_missing_library_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        arzstream.UnsupportedError, match=r"accelerate is not installed; pip install 'arzstream\[accelerate\]'"
    ):
        require("accelerate")
    with pytest.raises(arzstream.UnsupportedError, match="vllm is not installed"):
        require("vllm.model_executor")


def test_a_library_without_the_module_is_too_old_and_a_broken_one_says_why() -> None:
    with pytest.raises(arzstream.UnsupportedError, match=r"no transformers\.nothing"):
        require("transformers.nothing")


def test_the_plug_ins_are_where_their_hosts_look() -> None:
    wanted = {
        "fsspec.specs": "arzstream.integrations.fsspec_arz:ArzFileSystem",
        "vllm.general_plugins": "arzstream.integrations.vllm:register",
        "sglang.srt.plugins": "arzstream.integrations.sglang:register",
    }
    for group, value in wanted.items():
        (found,) = entry_points(group=group, name="arz")
        assert found.value == value and callable(found.load())


def test_loading_a_plug_in_starts_neither_torch_nor_its_host() -> None:
    script = "import sys; from arzstream.integrations import vllm, sglang; print({'torch', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
