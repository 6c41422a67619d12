"""What README.md shows is run as it stands there, on a checkpoint with the names that it uses."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import arzstream
from arzstream.testing import process

SHAPES = {
    "model.embed_tokens.weight": (2100, 8),
    "model.layers.0.mlp.up_proj.weight": (32, 8),
    "lm_head.weight": (2100, 8),
}


def blocks(repository: Path, language: str) -> list[str]:
    """The fenced blocks of README.md in ``language``; "" for those that name none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (repository / "README.md").read_text(), re.MULTILINE | re.DOTALL)


class Model(torch.nn.Module):
    """Has parameters of these names."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            *path, last = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, torch.nn.Parameter(torch.randn(shape).bfloat16()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``runs/exp7/step-2000`` and the step after it."""
    checkpoint = tmp_path / "runs" / "exp7" / "step-2000"
    checkpoint.mkdir(parents=True)
    save_file(Model().state_dict(), checkpoint / "model.safetensors")
    torch.save({"m": torch.randn(100)}, checkpoint / "optimizer.pt")
    (checkpoint / "config.json").write_text("{}\n")
    shutil.copytree(checkpoint, checkpoint.with_name("step-2010"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run(repository: Path, folder: Path) -> None:
    names = {"model": Model()}
    first, second, _ = blocks(repository, "python")
    exec(compile(first, "README.md", "exec"), names)
    assert process.tree(folder / "restored") == process.tree(folder / "runs" / "exp7" / "step-2000")
    opening, saving, rest = second.partition("import arzstream.torch")
    (folder / "step-2000.arz").rename(folder / "model.arz")
    exec(compile(opening, "README.md", "exec"), names)
    (folder / "model.arz").unlink()
    exec(compile(saving + rest, "README.md", "exec"), names)


def test_the_examples_of_servers_run(repository: Path, folder: Path) -> None:
    import tokenizers
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "llama")
    arzstream.pack([folder / "llama"], folder / "llama.arz")
    names: dict[str, object] = {}
    exec(compile(blocks(repository, "python")[2], "README.md", "exec"), names)
    assert type(names["model"]).__name__ == "LlamaForCausalLM" and names["tokenizer"] is not None


def test_the_commands_run(repository: Path, folder: Path) -> None:
    text = next(block for block in blocks(repository, "") if block.startswith("arzstream pack"))
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line]
    shown = {verb for _, verb, *_ in commands}
    assert shown == {"pack", "ls", "verify", "cat", "unpack", "watch", "status", "recover", "bench", "diff", "prune"}
    for _, verb, *arguments in commands:
        if verb == "recover":
            whole = (folder / "step-2000.arz").read_bytes()
            (folder / "damaged.arz").write_bytes(whole[: len(whole) // 2])
        if verb == "watch":
            arguments.append("--once")
        if verb == "bench":
            arguments += ["--peers", "none", "--rounds", "1"]
        if verb == "unpack" and "--only" in arguments:
            arguments[arguments.index("restored")] = "some"
        done = process.arzstream(verb, *arguments)
        assert done.returncode == (1 if verb == "recover" else 0), (verb, done.stderr)
    assert process.tree(folder / "restored") == process.tree(folder / "runs" / "exp7" / "step-2000")
    assert (folder / "archive" / "exp7" / "step-2000.arz").exists()
    assert [path.name for path in (folder / "some").iterdir()] == ["config.json"]


def test_every_link_leads_somewhere(repository: Path) -> None:
    for document in repository.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert target.startswith("https://") or (repository / target).exists(), (document.name, target)
