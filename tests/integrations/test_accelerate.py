"""Models whose weights stay in the archive, with the real accelerate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

import arzstream
from arzstream.integrations.accelerate import WeightCache, offloaded_from_pretrained
from arzstream.integrations.model import ModelFolder

Packed = Callable[..., tuple[Path, Path]]
IDS = torch.arange(3, 20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def changed(folder: Path, where: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The archive of a copy of ``folder`` with other weights."""
    shutil.copytree(folder, where / "m")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, where / "m" / "model.safetensors", {"format": "pt"})
    arzstream.pack([where / "m"], where / "m.arz", profile="fast")
    return where / "m.arz"


@pytest.mark.parametrize(("kind", "how"), [("llama", {}), ("gpt2", {"form": "bin"}), ("bert", {"shards": True})])
def test_the_forward_pass_is_that_of_the_loaded_model(packed_model: Packed, kind: str, how: dict[str, Any]) -> None:
    folder, archive = packed_model(kind, **how)
    model = offloaded_from_pretrained(archive, cache_bytes=1 << 16)
    assert all(parameter.is_meta for parameter in model.parameters())
    loaded = getattr(transformers, type(model).__name__).from_pretrained(folder)
    assert torch.equal(logits(model), logits(loaded))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.arz_archive.close()


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_modules_that_transformers_keeps_in_fp32_are_kept_so(packed_model: Packed, dtype: Any) -> None:
    """T5's activations overflow fp16 in them."""
    folder, archive = packed_model("t5", "float32")
    model = offloaded_from_pretrained(archive, dtype=dtype)
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds == {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    with torch.no_grad():
        ours, theirs = (one(input_ids=IDS, decoder_input_ids=IDS[:, :4]).logits for one in (model, loaded))
    assert torch.equal(ours, theirs)


def test_generation_decodes_again_only_what_the_cache_had_no_room_for(packed_model: Packed) -> None:
    folder, archive = packed_model("llama")
    wanted = transformers.LlamaForCausalLM.from_pretrained(folder).generate(IDS, do_sample=False, max_new_tokens=5)
    weights = len(safetensors.torch.load_file(folder / "model.safetensors"))
    roomy = offloaded_from_pretrained(archive)
    assert torch.equal(roomy.generate(IDS, do_sample=False, max_new_tokens=5), wanted)
    assert roomy.arz_cache.decoded == weights
    tight = offloaded_from_pretrained(archive, cache_bytes=0)
    assert torch.equal(tight.generate(IDS, do_sample=False, max_new_tokens=5), wanted)
    assert tight.arz_cache.decoded == 5 * weights


def test_the_cache_never_holds_more_than_its_bytes_and_keeps_what_was_used_last(packed_model: Packed) -> None:
    _, path = packed_model("llama")
    with arzstream.open(path) as archive:
        weights = ModelFolder(archive).weights()
        names = [name for name in weights if "mlp" in name]
        size = weights[names[0]].nbytes
        cache = WeightCache(weights, 3 * size)
        for name in names:
            assert torch.equal(cache[name], weights[name][...])
            assert sum(tensor.nbytes for tensor in cache._kept.values()) <= 3 * size
        before = cache.decoded
        cache[names[-1]], cache[names[-3]]
        assert cache.decoded == before
        cache[names[0]]
        cache[names[-3]]
        assert cache.decoded == before + 1
        cache[names[-2]]
        assert cache.decoded == before + 2
        assert set(cache) == set(weights) and len(cache) == len(weights)


def test_tied_weights_are_decoded_once_and_missing_ones_are_named(packed_model: Packed, tmp_path: Path) -> None:
    folder, archive = packed_model("gpt2")
    model = offloaded_from_pretrained(archive)
    assert torch.equal(logits(model), logits(transformers.GPT2LMHeadModel.from_pretrained(folder)))
    assert "lm_head.weight" not in model.arz_cache._kept
    names = safetensors.torch.load_file(folder / "model.safetensors")
    gone = next(name for name in names if name.endswith("c_fc.weight"))
    lacking = changed(folder, tmp_path, lambda tensors: tensors.pop(gone))
    with pytest.raises(arzstream.UnsupportedError, match=gone):
        offloaded_from_pretrained(lacking)


def test_a_quantised_model_is_refused_not_run_on_its_codes(fp8_model: tuple[Path, Path]) -> None:
    _, archive = fp8_model
    with pytest.raises(arzstream.UnsupportedError, match=r"quantised \(fp8\).*from_pretrained"):
        offloaded_from_pretrained(archive)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_codes_are_not_taken_for_the_values_of_a_wider_type(packed_model: Packed, tmp_path: Path, kind: Any) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = (tensors[name] * 100).to(kind)

    folder, _ = packed_model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(arzstream.UnsupportedError, match=rf"{name} is .* in the archive and torch.bfloat16"):
        offloaded_from_pretrained(changed(folder, tmp_path, change))


def test_a_weight_of_another_shape_is_refused_before_it_is_used(packed_model: Packed, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].T.contiguous()

    folder, _ = packed_model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(arzstream.UnsupportedError, match=rf"{name} is .*\[128, 256\].*\[256, 128\]"):
        offloaded_from_pretrained(changed(folder, tmp_path, change))


@pytest.mark.alone
def test_a_model_of_several_times_the_limit_runs_within_it(tmp_path: Path) -> None:
    """Under a limit on anonymous memory, in a process of its own: 300 MB of weights in 170 MB."""
    import subprocess
    import sys

    make = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.LlamaConfig(vocab_size=1024, hidden_size=1024, intermediate_size=4096, num_hidden_layers=9,
    num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False)
transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""
    use = """
import gc, resource, sys, torch, transformers
from arzstream.integrations.accelerate import offloaded_from_pretrained
transformers.LlamaForCausalLM, transformers.GenerationConfig, transformers.AutoConfig
torch.set_num_threads(1)
import accelerate.hooks, transformers.models.llama.modeling_llama
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
open("/proc/self/clear_refs", "w").write("5")
before = peak()
model = offloaded_from_pretrained(sys.argv[1], cache_bytes=64 << 20, jobs=1)
with torch.no_grad():
    for _ in range(2):
        found = model(torch.arange(3, 20)[None]).logits
print(peak() - before, model.num_parameters() * 2)
torch.save(found, sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", make, tmp_path / "m"], check=True)
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz", profile="fast")
    done = subprocess.run(
        [sys.executable, "-c", use, tmp_path / "m.arz", tmp_path / "found.pt"],
        check=True,
        capture_output=True,
        text=True,
    )
    used, size = map(int, done.stdout.split())
    assert size > 290 << 20 and used < 170 << 20, (used >> 20, size >> 20)
    wanted = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "found.pt"), wanted(torch.arange(3, 20)[None]).logits)
