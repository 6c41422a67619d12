"""Every failure is one line that names the file and says what to do, with the documented exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import click
import pytest

from arzstream import errors
from arzstream.testing import forge, process

from .conftest import Arz


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pakc"], "no such verb: 'pakc'; did you mean 'pack'?"),
        (["qqqq"], "no such verb: 'qqqq'; the verbs are pack, unpack, ls"),
        (["--bogus"], "no such option: --bogus; see arzstream --help"),
        (["ls"], "ls: missing argument 'ARCHIVE'; see arzstream ls --help"),
        (["ls", "a", "b"], "ls: got unexpected extra argument (b); see arzstream ls --help"),
        (["pack", "x"], "pack: missing option '--output'"),
        (["pack", "x", "-o"], "pack: option '-o' requires an argument"),
        (
            ["pack", "x", "-o", "y", "--tensor-paralel", "2"],
            "no such option: --tensor-paralel; did you mean --tensor-par",
        ),
        (["pack", "x", "-o", "y", "--profile", "quick"], "'quick' is not one of 'fast', 'balanced', 'max'"),
        (["pack", "x", "-o", "y", "--jobs", "0"], "0 is not in the range 1<=x<=1024"),
        (["pack", "x", "-o", "y", "--max-chain", "-1"], "-1 is not in the range x>=0"),
        (["rebase", "a"], "rebase: give either --parent ARCHIVE or --alone"),
        (["prune", "a"], "prune: say what to keep: --keep-last"),
        (["pack", "", "-o", "y"], "pack: invalid value for 'SOURCE...': is empty; is a variable not set?"),
        (["pack", "x", "", "-o", "y"], "'SOURCE...': is empty; is a variable not set?"),
        (["pack", "x", "-o", ""], "pack: invalid value for '--output' / '-o': is empty; is a variable not set?"),
        (["unpack", "x", "-o", ""], "'-o': is empty"),
        (["recover", "x", "-o", ""], "'-o': is empty"),
        (["rebase", "x", "--alone", "-o", ""], "'-o': is empty"),
        (["verify", "x", "--against", ""], "'--against': is empty"),
        (["status", ""], "dest: is empty; name a folder, or give none"),
    ],
)
def test_wrong_usage_is_2(arz: Arz, arguments: list[str], says: str) -> None:
    done = arz(*arguments)
    assert done.code == 2
    assert says in done.line
    assert done.out == ""


def test_kernels_that_nobody_knows_are_wrong_usage(archive: Path, checkpoint: Path, tmp_path: Path) -> None:
    new = str(tmp_path / "x.arz")
    watch = ("watch", tmp_path, tmp_path / "archive", "--once")
    for verb, *names in (("pack", checkpoint, "-o", new), ("recover", archive, "-o", new), watch, ("doctor",)):
        done = process.arzstream(verb, *names, env={"ARZ_KERNELS": "fortran"})
        assert done.returncode == (3 if verb == "doctor" else 2)
        assert "ARZ_KERNELS=fortran is none of auto, native, numpy, " in done.stderr
        assert done.stderr.endswith("; set another\n") and done.stderr.count("\n") == 1


def test_diff_names_the_archive_that_is_bad_and_no_other(arz: Arz, archive: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.arz"
    bad.write_bytes(b"Dear diary\n" * 50)
    for arguments in ((bad, archive), (archive, bad)):
        assert arz("diff", *arguments).line.startswith(f"{bad}: not an arzstream archive; ")


def test_no_arguments_show_the_help_and_are_2(arz: Arz) -> None:
    done = arz()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: arzstream [OPTIONS] VERB")


@pytest.mark.parametrize("verb", ["ls", "verify", "unpack", "cat"])
@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        ("notes", 1, "not an arzstream archive; name a file that arzstream pack"),
        ("empty", 1, "x.arz: "),
        ("short", 1, "; arzstream recover saves what is whole"),
        ("future", 3, "install a newer"),
    ],
)
def test_an_archive_that_cannot_be_read(
    arz: Arz, archive: Path, tmp_path: Path, verb: str, damage: str, code: int, says: str
) -> None:
    bad, good = tmp_path / "x.arz", archive.read_bytes()
    future = forge.reprologue(good[:-128], 8, b"\x02\x00")
    bad.write_bytes({"notes": b"Dear diary\n" * 50, "empty": b"", "short": good[:3000], "future": future}[damage])
    more = {"unpack": ["-o", tmp_path / "out"], "cat": ["config.json"]}.get(verb, [])
    done = arz(verb, bad, *more)
    assert done.code == code
    assert done.line.startswith(f"{bad}: ")
    assert says in done.line and ";" in done.line
    assert done.out == ""


def test_damage_in_the_middle_is_1_and_named(arz: Arz, archive: Path, tmp_path: Path) -> None:
    bad, data = tmp_path / "x.arz", bytearray(archive.read_bytes())
    data[50_000] ^= 1
    bad.write_bytes(data)
    done = arz("verify", bad)
    assert done.code == 1
    assert done.line.startswith(f"{bad}: ")
    assert done.line.endswith("; arzstream recover saves what is whole")
    done = arz("cat", bad, "model.safetensors")
    assert done.code == 1
    assert "tensor 'model.embed_tokens.weight'" in done.line


def test_an_unknown_codec_is_3_but_can_be_listed(arz: Arz, archive: Path, tmp_path: Path) -> None:
    prologue, frames = forge.parse(archive.read_bytes())
    strange = [forge.recode(f, codec=9999) if f.kind == 4 else f for f in frames]

    def edit(table: forge.Table) -> None:
        table["codec"] = 9999

    bad = tmp_path / "x.arz"
    bad.write_bytes(forge.assemble(prologue, strange, edit_table=edit))
    done = arz("ls", bad)
    assert done.code == 0
    assert "codec-9999" in done.out
    done = arz("cat", bad, "model.safetensors")
    assert done.code == 3
    assert "codec 9999" in done.line and "install a newer arzstream" in done.line


def test_a_source_that_differs_is_1(arz: Arz, archive: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = arz("verify", archive, "--against", other)
    assert done.code == 1
    assert "is only in the archive" in done.line
    assert "verify without --against" in done.line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls", "{tmp}/none.arz"], "none.arz: cannot open it for reading: No such file or directory; check the name"),
        (["ls", "{tmp}"], "not a regular file; name a file"),
        (
            ["pack", "{tmp}/none", "-o", "{tmp}/x.arz"],
            "none: cannot find it: No such file or directory; check the name",
        ),
        (["pack", "{checkpoint}", "-o", "{archive}"], "exists already; choose another name, or --force to replace it"),
        (["pack", "{checkpoint}", "-o", "{checkpoint}/config.json/x.arz"], "is in the way and not a folder"),
        (["pack", "{checkpoint}", "-o", "{tmp}/new/"], "new/: is a folder; name the archive, for example"),
        (["unpack", "{archive}", "-o", "{checkpoint}"], "cannot create it: File exists; choose another name"),
        (["recover", "{archive}", "-o", "{archive}"], "is what would be recovered, and stays as it is; choose another"),
    ],
)
def test_trouble_with_storage_is_4(
    arz: Arz, archive: Path, checkpoint: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = arz(*(text.format(tmp=tmp_path, archive=archive, checkpoint=checkpoint) for text in arguments))
    assert done.code == 4
    assert says in done.line


def test_a_member_that_is_not_there_is_2_with_close_ones(arz: Arz, archive: Path) -> None:
    for member, says in (
        ("confg.json", "holds no file called confg.json; did you mean config.json"),
        ("generation_config.json", "did you mean sub/generation_config.json"),
        ("zzz", "arzstream ls lists all 4"),
        ("sub", "is a folder; name a file in it"),
        ("link", "is a link; name what it leads to, config.json"),
    ):
        done = arz("cat", archive, member)
        assert done.code == 2
        assert done.line.startswith(f"{archive}: ") and says in done.line
    done = arz("unpack", archive, "-o", archive.parent / "nowhere", "--only", "*.txt")
    assert done.code == 2
    assert "no file matches '*.txt'" in done.line
    assert not (archive.parent / "nowhere").exists()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (errors.SourceChangedError("a.bin: changed; pack it again"), 1, "a.bin: changed; pack it again"),
        (errors.LimitError("9 files; at most 8 are read"), 1, "x.arz: 9 files; at most 8 are read"),
        (errors.LimitError("too many files"), 1, "x.arz: too many files; do not trust it, or ask who made it"),
        (errors.MissingParentError("its parent is missing"), 3, "x.arz: its parent is missing; arzstream doctor"),
        (errors.StorageError("d/.arz-tmp-a-b.arz-0123456789ab: full", errno=2), 4, "d/a-b.arz: full; check the name"),
        (errors.StorageError("x.arz: the server\nsaid no"), 4, r"x.arz: the server\nsaid no"),
        (PermissionError(13, "Permission denied", "/x/y"), 4, "/x/y: cannot use it: Permission denied; check the perm"),
        (MemoryError(), 4, "x.arz: there is not enough memory; end other programs"),
        (ModuleNotFoundError("no", name="zstandard"), 3, "the Python module 'zstandard' is missing; arzstream doctor"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (RuntimeError("boom\nbang"), 1, r"x.arz: internal error: RuntimeError: boom\nbang; run again with --debug"),
    ],
)
def test_whatever_is_raised_is_one_line(
    arz: Arz, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr("arzstream.archive.reader.open", fail)
    done = arz("ls", "x.arz")
    assert done.code == code
    assert done.line.startswith(says)


def test_debug_adds_the_traceback_on_either_side_of_the_verb(arz: Arz, tmp_path: Path) -> None:
    for arguments in (["--debug", "ls", tmp_path / "none"], ["ls", "--debug", tmp_path / "none"]):
        done = arz(*arguments)
        assert done.code == 4
        assert done.err.startswith("Traceback (most recent call last):")
        assert done.err.splitlines()[-1].startswith(f"arzstream: {tmp_path}/none: ")


def test_errors_with_json_are_lines_all_the_same(arz: Arz, tmp_path: Path) -> None:
    done = arz("verify", tmp_path / "none", "--json")
    assert (done.code, done.out) == (4, "")
    assert "No such file" in done.line


def start(*arguments: str | Path, out: int | None = subprocess.PIPE) -> subprocess.Popen[bytes]:
    argv = [*process.command(), *map(os.fspath, arguments)]
    return subprocess.Popen(argv, stdout=out, stderr=subprocess.PIPE)


def test_a_reader_that_has_enough_is_no_error_to_talk_about(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "long"
    source.write_bytes(os.urandom(1 << 20))
    assert process.arzstream("pack", source, "-o", tmp_path / "x.arz").returncode == 0
    for arguments in (("cat", tmp_path / "x.arz", "long"), ("pack", source, "-o", "-")):
        with start(*arguments) as running:
            assert running.stdout is not None and running.stderr is not None
            assert len(running.stdout.read(10)) == 10
            running.stdout.close()
            assert running.stderr.read() == b""
            assert running.wait(60) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="impossible here: no /dev/full")
def test_output_that_cannot_be_written_is_4(archive: Path, checkpoint: Path) -> None:
    for arguments in (("ls", archive), ("cat", archive, "model.safetensors"), ("pack", checkpoint, "-o", "-")):
        full = os.open("/dev/full", os.O_WRONLY)
        with start(*arguments, out=full) as running:
            os.close(full)
            assert running.stderr is not None
            assert running.stderr.read().startswith(b"arzstream: standard output: cannot write: No space left")
            assert running.wait(60) == 4


def test_closed_standard_streams(archive: Path, tmp_path: Path) -> None:
    command = " ".join(process.command())
    done = subprocess.run(f"{command} ls {archive} >&-", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1 and "standard output: cannot write" in done.stderr
    quiet = f"{command} pack {archive.parent / 'step-1'} -o {tmp_path / 'x.arz'} --quiet <&- >&- 2>&-"
    assert subprocess.run(quiet, shell=True, check=False).returncode == 0
    assert process.arzstream("verify", tmp_path / "x.arz").returncode == 0
    assert subprocess.run(f"{command} ls {tmp_path / 'no'} >&- 2>&-", shell=True, check=False).returncode == 4


SLOW_PACK = """
import sys, time
from arzstream.archive import builder
def seal(self, check):
    print("sealing", flush=True)
    for _ in range(600):  # a signal that comes right before one long sleep would end it only then
        time.sleep(0.1)
builder.CheckpointBuilder.seal = seal
from arzstream.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_with_130_and_leaves_nothing(checkpoint: Path, tmp_path: Path, name: str) -> None:
    import signal

    argv = [sys.executable, "-c", SLOW_PACK, "pack", str(checkpoint), "-o", str(tmp_path / "x.arz")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == b"sealing\n"
        assert [path.name.startswith(".arz-tmp-x.arz") for path in tmp_path.iterdir()] == [True]
        began = time.monotonic()
        running.send_signal(getattr(signal, name))
        assert running.wait(30) == 130
        assert time.monotonic() - began < 20
        assert running.stderr.read() == b"arzstream: interrupted\n"
    assert list(tmp_path.iterdir()) == []
