from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arzstream.formats.order import layer_key, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.10.mlp.up_proj.weight", "model.layers.10"),
        ("model.layers.0.mlp.experts.7.w1.weight", "model.layers.0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("transformer.h.3.attn.c_attn.weight", "transformer.h.3"),
        ("h.3.ln_1.bias", "h.3"),
        ("wte.weight", "wte"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings"),
        ("encoder.layer.11.output.dense.weight", "encoder.layer.11"),
        ("pooler.dense.bias", "pooler.dense"),
        ("decoder.block.1.layer.2.DenseReluDense.wi.weight", "decoder.block.1"),
        ("features.18.0.weight", "features.18"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("state.12.exp_avg", "optimizer.state.12"),
        ("optimizer.state.12.exp_avg_sq", "optimizer.state.12"),
        ("optim.state.model.layers.3.w.exp_avg", "optim.state.model.layers.3"),
        ("optimizer.param_groups.0.lr", "optimizer"),
        ("weight", "weight"),
        ("0", "0"),
        ("", ""),
    ],
)
def test_the_layer_of_a_tensor(name: str, layer: str) -> None:
    assert layer_of(name) == layer


ORDERS = {
    "gpt-2": "transformer.wpe transformer.wte transformer.h.0 transformer.h.2 transformer.h.10 transformer.ln_f",
    "llama": "model.embed_tokens model.layers.2 model.layers.10 lm_head model.norm",
    "bert": "embeddings encoder.layer.0 encoder.layer.1 encoder.layer.11 pooler.dense",
    "t5": "shared encoder.block.0 encoder.block.11 decoder.block.0 decoder.block.11 encoder.final_layer_norm",
    "whisper": "model.encoder.embed_positions model.encoder.layers.3 model.decoder.layers.0 proj_out",
    "vit": "patch_embed blocks.0 blocks.11 head",
    "resnet": "bn1 conv1 layer1.0 layer1.1 layer2.0 layer4.2 fc",
    "all": "wte h.0 h.9 h.10 ln_f x optimizer.state.2 optimizer.state.10",
}


@pytest.mark.parametrize("model", ORDERS)
def test_layers_come_in_the_order_of_use_and_literals_last(model: str) -> None:
    expected = [*ORDERS[model].split(), ""]
    shuffled = expected.copy()
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=layer_key) == expected


def test_layers_of_real_models_are_not_too_many() -> None:
    from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig, T5Config, WhisperConfig

    small = {"num_attention_heads": 2, "num_hidden_layers": 12}
    configs = [
        BertConfig(hidden_size=8, intermediate_size=8, vocab_size=9, **small),
        LlamaConfig(hidden_size=8, intermediate_size=8, vocab_size=9, **small),
        GPT2Config(n_embd=8, n_head=2, n_layer=12, vocab_size=9, n_positions=4),
        T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=12, num_heads=2, vocab_size=9),
        WhisperConfig(
            d_model=8, encoder_layers=6, decoder_layers=6, encoder_attention_heads=2, decoder_attention_heads=2
        ),
    ]
    for config in configs:
        with torch.device("meta"):
            names = list(AutoModel.from_config(config).state_dict())
        layers = sorted({layer_of(name) for name in names}, key=layer_key)
        numbered = [layer for layer in layers if any(part.isdigit() for part in layer.split("."))]
        assert len(numbered) in (12, 24)
        assert len(layers) <= len(numbered) + 8
        first, last = layers.index(numbered[0]), layers.index(numbered[-1])
        assert layers[first : last + 1] == numbered
        assert first > 0, "embeddings come before the numbered layers"


@given(st.lists(st.text(alphabet="ab0123456789.٣²_#", max_size=30), max_size=20))
def test_any_name_has_a_layer_and_layers_have_one_order(names: list[str]) -> None:
    layers = list({layer_of(name): None for name in names})
    backwards = layers[::-1]
    assert sorted(layers, key=layer_key) == sorted(backwards, key=layer_key)


def test_a_hostile_name_takes_no_time() -> None:
    for name in ("9" * 100_000, ".".join("9" * 50_000), "a1" * 50_000, "embed" * 20_000, "." * 100_000):
        layer_key(layer_of(name))
