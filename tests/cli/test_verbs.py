"""What each verb does and prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import arzstream
from arzstream.cli.group import VERBS
from arzstream.cli.text import safe
from arzstream.container.layout import Trailer
from arzstream.testing import process

from .conftest import EVIL, Arz

# ------------------------------------------------------------------------------------------------------------- pack


def test_pack_says_in_one_line_what_it_saved_and_why_a_file_is_opaque(
    arz: Arz, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "x.arz"
    done = arz("pack", checkpoint, "-o", out)
    assert (done.code, done.err) == (0, "")
    first, second = done.out.splitlines()
    assert first.startswith(f"{out}: ")
    assert " kB → " in first and " %), 6 tensors, 4 files, " in first and first.endswith(" s")
    assert second.startswith("  broken.safetensors: not a valid safetensors file")


def test_pack_json_has_the_promised_keys(arz: Arz, checkpoint: Path, tmp_path: Path) -> None:
    found = arz("pack", checkpoint, "-o", tmp_path / "x.arz", "--json").json
    assert found["bytes_in"] == sum(
        p.stat().st_size for p in checkpoint.rglob("*") if p.is_file() and not p.is_symlink()
    )
    assert found["bytes_out"] == (tmp_path / "x.arz").stat().st_size
    assert found["ratio"] == found["bytes_out"] / found["bytes_in"]
    assert found["seconds"] > 0
    assert found["codecs"]["dup"] == 1 and sum(found["codecs"].values()) == found["tensors"] == 6
    assert list(found["opaque"]) == ["broken.safetensors"]


def test_quiet_says_nothing(arz: Arz, checkpoint: Path, archive: Path, tmp_path: Path) -> None:
    for arguments in (
        ["pack", checkpoint, "-o", tmp_path / "x.arz"],
        ["pack", checkpoint, "-o", tmp_path / "x.arz", "--force"],
        ["unpack", archive, "-o", tmp_path / "out"],
        ["verify", archive, "--deep"],
        ["recover", archive, "-o", tmp_path / "y.arz"],
    ):
        done = arz(*arguments, "--quiet")
        assert (done.code, done.out, done.err) == (0, "", "")


def test_pack_options_reach_the_library(arz: Arz, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def pack(sources: object, dest: object, **options: object) -> object:
        asked.append((sources, dest, options))
        raise arzstream.StorageError("enough; stop")

    monkeypatch.setattr("arzstream.archive.pack.pack", pack)
    arz("pack", "a", "b", "-o", "c", "--profile", "fast", "--jobs", "3", "--tensor-parallel", "4", "--reproducible")
    arz("pack", "a", "-o", "c", "--force")
    usual = {"progress": None, "jobs": None, "profile": "balanced"}
    usual |= {"tensor_parallel": 1, "reproducible": False, "force": False}
    usual |= {"parent": None, "parents": (), "max_chain": 8}
    chosen = {"profile": "fast", "jobs": 3, "tensor_parallel": 4, "reproducible": True}
    assert asked == [(("a", "b"), "c", {**usual, **chosen}), (("a",), "c", {**usual, "force": True})]


def test_an_archive_goes_to_standard_output_and_words_to_standard_error(checkpoint: Path, tmp_path: Path) -> None:
    argv = [*process.command(), "pack", str(checkpoint), "-o", "-"]
    done = subprocess.run([*argv, "--json"], capture_output=True, check=True)
    (tmp_path / "x.arz").write_bytes(done.stdout)
    assert json.loads(done.stderr)["bytes_out"] == len(done.stdout)
    assert process.arzstream("verify", "--deep", tmp_path / "x.arz").returncode == 0
    done = subprocess.run(argv, capture_output=True, check=True)
    assert done.stderr.startswith(b"standard output: ")


# --------------------------------------------------------------------------------------------------- unpack and cat


def test_unpack_restores_and_counts(arz: Arz, checkpoint: Path, archive: Path, tmp_path: Path) -> None:
    done = arz("unpack", archive, "-o", tmp_path / "out")
    assert done.code == 0
    assert done.out.startswith(f"{tmp_path}/out: 4 files restored, ")
    assert process.tree(tmp_path / "out") == process.tree(checkpoint)


def test_unpack_only_restores_what_matches(arz: Arz, archive: Path, tmp_path: Path) -> None:
    found = arz("unpack", archive, "-o", tmp_path / "out", "--only", "*.json", "--json").json
    assert found["files"] == ["config.json", "sub/generation_config.json"]
    assert found["bytes"] == len('{"layers": 2}\n') + len("{}\n")


def test_cat_gives_the_bytes(checkpoint: Path, archive: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        done = subprocess.run([*process.command(), "cat", str(archive), name], capture_output=True, check=True)
        assert done.stdout == (checkpoint / name).read_bytes()
        assert done.stderr == b""


def test_cat_takes_names_as_ls_shows_them(arz: Arz, tmp_path: Path) -> None:
    name = os.fsdecode(b"odd\n\xff ")
    (tmp_path / name).write_bytes(b"content")
    arzstream.pack(str(tmp_path / name), str(tmp_path / "x.arz"))
    shown = r"odd\n\xff\x20"
    assert shown in arz("ls", tmp_path / "x.arz").out
    for member in (name, shown):
        assert arz("cat", tmp_path / "x.arz", member).out == "content"


# Not ru_maxrss: Linux hands it on to the program that a process runs.
MEMORY = """
import sys
from arzstream.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


def test_cat_needs_no_more_memory_for_a_larger_file(tmp_path: Path) -> None:
    used = []
    for megabytes in (64, 256):
        (tmp_path / "long").write_bytes(bytes(megabytes << 20))
        arzstream.pack(str(tmp_path / "long"), str(tmp_path / "x.arz"), force=True)
        argv = [sys.executable, "-c", MEMORY, "cat", str(tmp_path / "x.arz"), "long"]
        done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        used.append(int(done.stderr))
    assert used[1] < used[0] + 32_000  # KiB


# --------------------------------------------------------------------------------------------------------------- ls


def test_ls_json_describes_everything(arz: Arz, checkpoint: Path, archive: Path) -> None:
    found = arz("ls", archive, "--json").json
    assert found["sealed"] is True
    assert found["stored"] == archive.stat().st_size
    assert found["format"] == "1.0" and len(found["content"]) == 64
    files = {file["path"]: file for file in found["files"]}
    assert {name: file["kind"] for name, file in files.items()} == {
        "broken.safetensors": "file", "config.json": "file", "link": "link", "model.safetensors": "file",
        "sub": "folder", "sub/generation_config.json": "file",
    }  # fmt: skip
    assert files["link"]["target"] == "config.json"
    assert files["model.safetensors"]["tensors"] == 6
    assert files["broken.safetensors"]["format"] == "opaque" and files["broken.safetensors"]["note"]
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert next(iter(tensors)) == "model.embed_tokens.weight"
    up = tensors["model.layers.1.up.weight"]
    assert (up["dtype"], up["shape"], up["layer"], up["file"]) == (
        "F32",
        [256, 256],
        "model.layers.1",
        "model.safetensors",
    )
    assert up["bytes"] == 4 << 16 and up["ratio"] == up["stored"] / up["bytes"] and 0.5 < up["ratio"] < 0.9
    assert up["codec"] == "float_ctx" and up["dup_of"] is None
    assert tensors["model.layers.1.up.bias"]["shape"] == []
    head = tensors["lm_head.weight"]
    assert (head["codec"], head["dup_of"], head["stored"]) == ("dup", "model.embed_tokens.weight", 0)


def test_ls_json_with_layers_and_chunks(arz: Arz, archive: Path) -> None:
    found = arz("ls", archive, "--json", "--layers", "--chunks").json
    layers = [layer["layer"] for layer in found["layers"]]
    assert layers[:3] == ["model.embed_tokens", "model.layers.0", "model.layers.1"]
    assert found["layers"][2]["tensors"] == ["model.layers.1.up.weight", "model.layers.1.up.bias"]
    data = archive.read_bytes()
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    for tensor in tensors.values():
        for chunk in tensor["chunks"]:
            assert data[chunk["offset"] :][:8] == bytes.fromhex("F5 61 72 7A 66 72 6D 9C")
    whole = tensors["model.layers.0.up.weight"]
    assert sum(chunk["stored"] for chunk in whole["chunks"]) == whole["stored"]
    assert whole["chunks"][0]["rows"] == [0, 256] and whole["chunks"][0]["columns"] == [0, 256]
    assert tensors["lm_head.weight"]["chunks"] == []
    assert found["contents"], "the bytes of the other files"


def test_ls_draws_files_and_tensors(arz: Arz, archive: Path) -> None:
    done = arz("ls", archive)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{archive}: ") and lines[0].endswith("6 tensors, 4 files, sealed")
    assert any(line.startswith("link → config.json") for line in lines)
    broken = next(i for i, line in enumerate(lines) if line.startswith("broken.safetensors"))
    assert lines[broken + 1].startswith("    not a valid safetensors file")
    head = next(i for i, line in enumerate(lines) if line.startswith("lm_head.weight"))
    assert " dup " in lines[head] and lines[head + 1] == "    dup of model.embed_tokens.weight"
    up = next(line.split() for line in lines if line.startswith("model.layers.1.up.weight"))
    assert up[1:4] == ["F32", "256×256", "float_ctx"]
    assert next(line.split() for line in lines if line.startswith("model.layers.1.up.bias"))[2] == "scalar"


def test_ls_lets_no_name_play_tricks(arz: Arz, archive: Path) -> None:
    for options in ([], ["--layers"], ["--chunks"]):
        out = arz("ls", archive, *options).out
        assert safe(EVIL) in out and EVIL not in out
        assert all(char == "\n" or char.isprintable() for char in out)
    assert r"evil\x1b[2J\u202e\nname.größe" in arz("ls", archive).out
    assert arz("ls", archive, "--json").out.isascii()


def test_ls_layers_and_chunks(arz: Arz, archive: Path) -> None:
    out = arz("ls", archive, "--layers").out
    rows = [line.split() for line in out.splitlines()]
    assert ["LAYER", "TENSORS", "SIZE", "RATIO"] in rows
    assert next(row for row in rows if row and row[0] == "model.layers.1")[1] == "2"
    out = arz("ls", archive, "--chunks").out
    assert "CHUNKS OF" in out and "(file contents, unit " in out


def test_ls_of_a_growing_archive(arz: Arz, archive: Path, tmp_path: Path) -> None:
    offsets = [c["offset"] for t in arz("ls", archive, "--json", "--chunks").json["tensors"] for c in t["chunks"]]
    cut = tmp_path / "x.arz"
    cut.write_bytes(archive.read_bytes()[: max(offsets)])
    done = arz("ls", cut)
    assert done.code == 0
    assert done.out.splitlines()[0].endswith(", growing")
    assert "still being written, or it was cut short" in done.out
    assert arz("ls", cut, "--json").json["sealed"] is False


# ------------------------------------------------------------------------------------------------ verify and recover


def test_verify_says_what_it_checked(arz: Arz, archive: Path, checkpoint: Path) -> None:
    for options, words in (
        ([], "every stored byte checked"),
        (["--deep"], "everything decoded, BLAKE3 and SHA-256 right"),
        (["--against", checkpoint], f"identical to {checkpoint}"),
    ):
        done = arz("verify", archive, *options)
        assert done.code == 0 and done.out.count("\n") == 1
        assert done.out.startswith(f"{archive}: good; ") and words in done.out
    found = arz("verify", archive, "--deep", "--json").json
    assert found["good"] is True and found["deep"] is True
    assert (found["bytes"], found["tensors"]) == (archive.stat().st_size, 6)


def test_verify_names_links_that_unpack_refuses(arz: Arz, repository: Path) -> None:
    archive = repository / "spec" / "vectors" / "good-links.arz"
    done = arz("verify", archive)
    assert done.code == 0 and "the link outside leads outside" in done.out and "dangling" not in done.out
    assert arz("verify", archive, "--json").json["refused_links"] == ["outside", "up"]


def damaged(archive: Path, tensor: str, tmp_path: Path, arz: Arz) -> Path:
    """A copy with one byte of ``tensor`` changed."""
    listed = {t["name"]: t for t in arz("ls", archive, "--json", "--chunks").json["tensors"]}
    data, bad = bytearray(archive.read_bytes()), tmp_path / "damaged.arz"
    data[listed[tensor]["chunks"][0]["offset"] + 1000] ^= 1
    bad.write_bytes(data)
    return bad


def test_recover_lists_what_is_lost_and_ends_with_1(arz: Arz, archive: Path, tmp_path: Path) -> None:
    bad = damaged(archive, "model.layers.0.up.weight", tmp_path, arz)
    out = tmp_path / "rescued.arz"
    done = arz("recover", bad, "-o", out)
    assert done.code == 1
    assert done.line == f"{bad}: 1 tensor and 1 file lost; {out} holds the rest"
    lines = done.out.splitlines()
    assert lines[0] == f"{out}: 5 tensors and 5 files saved; 1 tensor and 1 file lost; 1 damaged place in {bad}"
    lost = lines[1 : lines.index("saved files:")]
    assert lost == ["lost tensors:", "  model.layers.0.up.weight", "lost files:", "  model.safetensors"]
    assert "  model.layers.1.up.weight" not in lines  # what is saved, `ls` tells
    assert arz("verify", out, "--deep").code == 0
    assert "recovered.safetensors" in arz("ls", out).out


def test_recover_json(arz: Arz, archive: Path, tmp_path: Path) -> None:
    bad = damaged(archive, "model.layers.0.up.weight", tmp_path, arz)
    done = arz("recover", bad, "-o", tmp_path / "rescued.arz", "--json")
    assert done.code == 1 and done.line
    found = json.loads(done.out)
    assert (found["lost_tensors"], found["lost_files"]) == (["model.layers.0.up.weight"], ["model.safetensors"])
    assert found["complete"] is False and found["indexed"] is True
    assert arz("recover", archive, "-o", tmp_path / "all.arz", "--json").json["complete"] is True


def test_recover_without_an_index_does_not_claim_to_know_all(arz: Arz, archive: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.arz"
    chunks = arz("ls", archive, "--json", "--chunks").json["tensors"][2]["chunks"]
    cut.write_bytes(archive.read_bytes()[: chunks[0]["offset"]])
    done = arz("recover", cut, "-o", tmp_path / "rescued.arz")
    assert done.code == 1
    assert "that is known of (its index is lost, too)" in done.line
    data = archive.read_bytes()
    cut.write_bytes(data[: Trailer.decode(data[-128:], len(data)).index_offset])
    done = arz("recover", cut, "-o", tmp_path / "all.arz")
    assert done.code == 1
    assert "nothing lost that is known of" in done.line


# ------------------------------------------------------------------------------------------ doctor, help, version


def test_doctor_names_the_backend_and_the_packages(arz: Arz, monkeypatch: pytest.MonkeyPatch) -> None:
    found = arz("doctor", "--json").json
    assert found["healthy"] is True and found["problems"] == []
    assert found["kernels"]["backend"] in ("native", "numpy")
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert versions["numpy"] and versions["torch"] and versions["zstandard"]
    assert found["machine"]["cores"] >= 1 and found["machine"]["memory"] > 1 << 28
    out = arz("doctor").out
    assert f"arzstream   {arzstream.__version__} in " in out and "kernels     " in out


def test_doctor_ends_with_3_if_a_needed_part_is_missing(arz: Arz, monkeypatch: pytest.MonkeyPatch) -> None:
    from arzstream.cli import installation

    have = installation._version
    monkeypatch.setattr(installation, "_version", lambda name: None if name in ("blake3", "s3fs") else have(name))
    done = arz("doctor")
    assert done.code == 3
    assert done.line == "blake3: is not installed, digests of tensors need it; pip install blake3"
    assert any(line.split()[:2] == ["blake3", "MISSING"] for line in done.out.splitlines())
    done = arz("doctor", "--json")
    assert done.code == 3 and json.loads(done.out)["healthy"] is False


def test_doctor_notices_kernels_that_are_wrong(arz: Arz, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arzstream.codec.best.encode_best", lambda data, context, profile: (0, bytes(len(data))))
    done = arz("doctor")
    assert done.code == 3
    assert done.line.startswith("kernels: ") and "install arzstream again" in done.line


def test_doctor_says_why_numpy_does_the_work() -> None:
    done = process.arzstream("doctor", env={"ARZ_KERNELS": "numpy"})
    assert done.returncode == 0
    assert "kernels     numpy" in done.stdout
    assert "native kernels" in done.stdout.splitlines()[-1]
    done = process.arzstream("doctor", env={"ARZ_KERNELS": "fortran"})
    assert done.returncode == 3
    assert "fortran" in done.stderr


def test_the_version(arz: Arz) -> None:
    assert arz("--version").out == f"arzstream {arzstream.__version__}\n"


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_every_verb_is_short_and_has_an_example(arz: Arz, verb: str) -> None:
    done = arz(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: arzstream {verb} ")
    assert len(done.out.splitlines()) < 45 and max(map(len, done.out.splitlines())) <= 100
    assert "--debug" in done.out
    assert f"  arzstream {verb}" in done.out


def test_help_lists_every_verb(arz: Arz) -> None:
    out = arz("--help").out
    for verb, text in VERBS.items():
        assert f"  {verb} " in out and text.split(":")[0][:30] in out


def test_the_shell_can_complete_verbs() -> None:
    done = process.arzstream(
        env={"_ARZSTREAM_COMPLETE": "bash_complete", "COMP_WORDS": "arzstream re", "COMP_CWORD": "1"}
    )
    assert done.stdout.split() == ["plain,rebase", "plain,recover"]
