"""Real diffusers pipelines, out of archives and out of the folders that were packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers

import arzstream
from arzstream.integrations.diffusers import from_pretrained, model_from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion whose models are tiny, saved as such pipelines are."""
    torch.manual_seed(0)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "cat": 3}, "<unk>"))
    text = transformers.CLIPTextConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    made: Any = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32,), layers_per_block=1, norm_num_groups=8, sample_size=16),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=8
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pipeline")
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def archive(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "sd.arz"
    arzstream.pack([folder], path, profile="fast")
    return path


def same(found: Any, wanted: Any) -> None:
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == t.dtype and torch.equal(ours[name], t) for name, t in theirs.items())


def image(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt="cat", height=16, width=16, num_inference_steps=2, output_type="pt", generator=torch.manual_seed(0)
    )
    return made.images


def test_a_pipeline_is_what_diffusers_loads_from_the_folder(folder: Path, archive: Path) -> None:
    ours, theirs = from_pretrained(archive), diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(ours) is type(theirs)
    for part in ("unet", "vae", "text_encoder"):
        same(getattr(ours, part), getattr(theirs, part))
        assert not getattr(ours, part).training
    assert torch.equal(image(ours), image(theirs))


def test_a_part_that_is_given_is_not_read_and_dtype_casts_the_models(archive: Path, decoded: list[str]) -> None:
    unet = model_from(archive, "unet", dtype=torch.float16)
    assert unet.dtype == torch.float16 and isinstance(unet, diffusers.UNet2DConditionModel)
    decoded.clear()
    pipeline = from_pretrained(archive, unet=unet, dtype=torch.float16)
    assert pipeline.unet is unet and pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float16
    assert not any("down_blocks.0.resnets.0.time_emb_proj" in name for name in decoded)


def test_modules_that_diffusers_keeps_in_fp32_are_kept_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, cross_attn_norm=True,
    )  # fmt: skip
    made.save_pretrained(tmp_path / "m")
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz", profile="fast")
    theirs = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "m", dtype=torch.float16)
    same(model_from(tmp_path / "m.arz", dtype=torch.float16), theirs)
    assert {tensor.dtype for tensor in theirs.state_dict().values()} == {torch.float16, torch.float32}


def test_the_old_names_of_attention_are_those_that_diffusers_knows(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "vae", tmp_path / "vae")
    stored = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(stored)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in [name for name in tensors if ".attentions.0." in name]:
        for new in old:
            if f".{new}." in name:
                tensors[name.replace(f".{new}.", f".{old[new]}.")] = tensors.pop(name)
    assert any(".proj_attn." in name for name in tensors)
    safetensors.torch.save_file(tensors, stored, {"format": "pt"})
    arzstream.pack([tmp_path / "vae"], tmp_path / "vae.arz", profile="fast")
    same(model_from(tmp_path / "vae.arz"), diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae"))


def test_a_quantised_model_is_refused_not_filled_with_its_codes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "unet", tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    arzstream.pack([tmp_path / "unet"], tmp_path / "unet.arz", profile="fast")
    with pytest.raises(arzstream.UnsupportedError, match=r"quantised \(bitsandbytes\)"):
        model_from(tmp_path / "unet.arz")


def test_a_model_that_belongs_to_the_pipeline_itself_is_read_from_the_archive(folder: Path, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    shutil.copytree(folder, tmp_path / "sd")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config=small, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=16
    )
    made = StableDiffusionSafetyChecker(config)
    made.save_pretrained(tmp_path / "sd" / "safety_checker")
    transformers.CLIPImageProcessor().save_pretrained(tmp_path / "sd" / "feature_extractor")
    index = json.loads((tmp_path / "sd" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps(index))
    arzstream.pack([tmp_path / "sd"], tmp_path / "sd.arz", profile="fast")
    same(from_pretrained(tmp_path / "sd.arz").safety_checker, made)


def test_the_older_name_of_dtype_casts_as_well_and_what_cannot_be_done_is_refused(archive: Path) -> None:
    assert from_pretrained(archive, torch_dtype=torch.float16).unet.dtype == torch.float16
    with pytest.raises(arzstream.UnsupportedError, match="quantization_config"):
        from_pretrained(archive, quantization_config=object())


def test_a_missing_part_is_named(folder: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(arzstream.UnsupportedError, match=r"nothing/config\.json"):
        model_from(archive, "nothing")
    arzstream.pack([folder / "unet"], tmp_path / "unet.arz", profile="fast")
    with pytest.raises(arzstream.UnsupportedError, match=r"model_index\.json"):
        from_pretrained(tmp_path / "unet.arz")
    same(model_from(tmp_path / "unet.arz"), model_from(archive, "unet"))
