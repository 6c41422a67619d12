"""A real vLLM server on the CPU, out of an archive and out of the folder that was packed.

    tools/servers/install_vllm
    .venv-vllm/bin/python -m tools.servers.vllm_cpu [--ranks 1 2] [--formats safetensors arz …] [--bucket]

Makes a random Llama of 134 million parameters in bf16 (or takes ``--model DIR``), packs it (with ``--bucket``: and puts
the archive into a bucket of moto's S3 server, from which it is loaded), starts
``vllm.entrypoints.openai.api_server`` once for each format and number of ranks, and asks it for tokens, always the most
probable ones. Prints, for each, the seconds until the server is ready, those that vLLM says the weights took, the
largest sum of the memory of its processes (proportional set size, sampled), and whether the tokens are those of
safetensors with as many ranks. Exits 1 if some are not.

vLLM's tokens in bf16 depend on how it splits its sums, so a server is compared with vLLM's own loader only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import psutil

import arzstream
from arzstream.testing.servers import Server, moto

PROMPTS = [[11, 222, 3333, 4444, 5], list(range(100, 140)), [9, 9, 9, 31999, 1], [2000 + 7 * n for n in range(64)]]
TOKENS = 32
READY_SECONDS = 900.0
SAMPLE_SECONDS = 0.25


class Run(NamedTuple):
    """What one server did."""

    tokens: list[list[int]]
    ready_s: float
    weights_s: float | None
    peak_bytes: int


def make_model(folder: Path, layers: int = 12) -> None:
    """A random Llama and a tokenizer of as many words."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    # Five times the usual deviation, so that the largest logit is not decided by rounding.
    config.initializer_range = 0.1
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, config.vocab_size)}}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def without_weights(model: Path, folder: Path) -> Path:
    """A folder with all of ``model`` but its weights: nothing can be loaded from it by mistake."""
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def tensorized(model: Path, folder: Path) -> Path:
    """The weights as tensorizer writes them."""
    import safetensors.torch
    import tensorizer

    path = folder / "model.tensors"
    state: dict[str, Any] = {}
    for shard in sorted(model.glob("*.safetensors")):
        state.update(safetensors.torch.load_file(shard))
    serializer = tensorizer.TensorSerializer(str(path))
    serializer.write_state_dict(state)
    serializer.close()
    return path


def arguments_of(form: str, model: Path, archive: dict[str, Any], work: Path) -> list[str]:
    """The server's arguments for a load format."""
    if form == "safetensors":
        return ["--model", str(model), "--load-format", "safetensors"]
    if form == "runai_streamer":
        return ["--model", str(model), "--load-format", form]
    bare = work / "bare"
    folder = str(bare if bare.exists() else without_weights(model, bare))
    extra = archive if form == "arz" else {"tensorizer_uri": str(tensorized(model, work))}
    return ["--model", folder, "--load-format", form, "--model-loader-extra-config", json.dumps(extra)]


def serve(arguments: list[str], ranks: int, log: Path) -> Run:
    """Start a server, ask it, stop it. Raises RuntimeError with the end of its log if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO",
    }  # fmt: skip
    if ranks > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks))
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, "--served-model-name", "m",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "256", "--enforce-eager",
        "--max-num-seqs", "4", "--gpu-memory-utilization", "0.1", "--tensor-parallel-size", str(ranks), "--seed", "0",
    ]  # fmt: skip
    with log.open("wb") as out:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        peak = _Peak(process.pid)
        try:
            _wait_ready(process, port, log)
            ready = time.monotonic() - started
            tokens = [_complete(port, prompt) for prompt in PROMPTS]
        finally:
            _stop(process)
            peak.stop()
    said = re.findall(r"Loading weights took ([\d.]+) seconds", log.read_text(errors="replace"))
    return Run(tokens, ready, float(said[0]) if said else None, peak.bytes)


def _reason(error: Exception) -> str:
    found = re.findall(r"\b(\w+Error: .*)", str(error))
    return (found[-1] if found else str(error).splitlines()[0])[:120]


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _complete(port: int, prompt: list[int]) -> list[int]:
    asked = {
        "model": "m",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return [int(token) for token in json.load(answer)["choices"][0]["token_ids"]]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server and whatever it started; they are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=30)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


class _Peak:
    """The largest sum of proportional set sizes of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            try:
                first = psutil.Process(self._pid)
                family = [first, *first.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.bytes = max(self.bytes, sum(map(_pss, family)))

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def _pss(process: psutil.Process) -> int:
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as rollup:
            return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith(b"Pss:"))
    except OSError:
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder with a model (default: a random one is made)")
    parser.add_argument("--bucket", action="store_true", help="load the archive from a bucket of moto's S3 server")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", default=["safetensors", "arz", "runai_streamer", "tensorizer"])
    parser.add_argument("--work", type=Path, help="where to work, and keep the logs (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bucket = stack.enter_context(moto(work)) if options.bucket else None
        return run(options, work, bucket)


def run(options: argparse.Namespace, work: Path, bucket: Server | None) -> int:
    model = options.model or work / "model"
    if not model.exists():
        make_model(model)
    path = work / "model.arz"
    if not path.exists():
        summary = arzstream.pack([model], path)
        print(f"packed {summary.bytes_in / 1e6:.1f} MB to {summary.bytes_out / 1e6:.1f} MB", flush=True)
    archive: dict[str, Any] = {"uri": str(path)}
    if bucket is not None:
        archive = {"uri": f"{bucket.url}/model.arz", "storage_options": bucket.storage_options}
        fsspec.filesystem("s3", **bucket.storage_options).put_file(str(path), archive["uri"].removeprefix("s3://"))
    different = False
    print("| ranks | format | ready | weights took | peak memory | tokens |\n|---|---|---|---|---|---|", flush=True)
    for ranks in options.ranks:
        wanted: list[list[int]] | None = None
        for form in options.formats:
            try:
                done = serve(arguments_of(form, model, archive, work), ranks, work / f"{form}-{ranks}.log")
            except (RuntimeError, ImportError, OSError) as error:
                print(f"| {ranks} | {form} | does not run here: {_reason(error)} | | | |", flush=True)
                different |= form in ("safetensors", "arz")
                continue
            wanted = done.tokens if wanted is None else wanted
            same = "identical" if done.tokens == wanted else "DIFFERENT"
            different |= done.tokens != wanted
            took = "" if done.weights_s is None else f"{done.weights_s:.2f} s"
            print(
                f"| {ranks} | {form} | {done.ready_s:.1f} s | {took} | {done.peak_bytes / 1e9:.2f} GB | {same} |",
                flush=True,
            )
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
