"""Settings come from the file, then from the command line, and mistakes are named."""

from __future__ import annotations

import pytest

from arzstream.daemon.config import Settings, SettingsError, merged
from arzstream.errors import StorageError


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path, monkeypatch):
    path = tmp_path / "arz.toml"
    path.write_text('source = "runs"\njobs = 3\nquiet-time = 2\nprofile = "fast"\n')
    monkeypatch.setenv("ARZ_CONFIG", str(path))
    settings = merged(None, {"jobs": 1, "dest": None})
    assert settings == Settings(source="runs", jobs=1, quiet_time=2, profile="fast")
    monkeypatch.delenv("ARZ_CONFIG")
    assert merged(None, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jbos = 3", "'jbos' is not a setting"),
        ("quiet_time = 3", "'quiet_time' is not a setting"),
        ('jobs = "3"', "jobs: '3' is not of the right kind"),
        ("jobs = true", "jobs: True is not of the right kind"),
        ("jobs = ", "not valid TOML"),
        ('profile = "best"', "profile: 'best' is none of"),
        ("memory = 1", "too little"),
        ("rescan = -1", "not a number of seconds"),
        ('source = ""', "source: is empty; name a folder, or give none"),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    path = tmp_path / "arz.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        merged(str(path), {})


def test_a_missing_file_is_an_io_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read the settings"):
        merged(str(tmp_path / "none.toml"), {})
