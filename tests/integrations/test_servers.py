"""vLLM, SGLang and TensorRT-LLM against stand-ins with the signatures of their sources (read in vLLM 0.32 and 0.33,
SGLang 0.5.23 and TensorRT-LLM's main branch). tools/servers/vllm_cpu.py runs a real vLLM."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import pickle
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import arzstream
from arzstream.integrations.serving import ServingOptions, weights_of

Packed = Callable[..., tuple[Path, Path]]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> Any:
    """A module of this name, and those above it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            made: Any = types.ModuleType(path)
            made.__path__ = []
            monkeypatch.setitem(sys.modules, path, made)
            if end > 1:
                monkeypatch.setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made, raising=False)
    for key, value in names.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)
    return sys.modules[name]


def expected(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return found


def equal(found: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Group:
    """A GroupCoordinator of one rank."""

    world_size, rank_in_group, cpu_group = 1, 0, None


class Model:
    """What a loader sees of a model."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        self.loaded = dict(weights)
        return set(self.loaded)

    def named_modules(self) -> list[Any]:
        return []

    def eval(self) -> Model:
        return self


# -- vLLM


@dataclasses.dataclass
class VllmLoadConfig:
    load_format: str = "arz"
    model_loader_extra_config: Any = dataclasses.field(default_factory=dict)
    ignore_patterns: Any = "original/**/*"
    use_tqdm_on_load: bool = True


@dataclasses.dataclass
class VllmModelConfig:
    model: str
    revision: str | None = None


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Any]]:
    """Load formats → loaders, as a vLLM in which the plug-in was registered twice has them."""

    class BaseModelLoader:
        def __init__(self, load_config: Any) -> None:
            self.load_config = load_config

    class DefaultModelLoader(BaseModelLoader):
        @dataclasses.dataclass
        class Source:
            model_or_path: str
            revision: str | None
            subfolder: str | None = None
            prefix: str = ""
            fall_back_to_pt: bool = True
            allow_patterns_overrides: list[str] | None = None
            is_unused_weight: Callable[[str], bool] | None = None

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self.local_expert_ids: set[int] | None = None
            self.counter_before_loading_weights = 0.0
            if set(load_config.model_loader_extra_config) - {"enable_multithread_load", "num_threads"}:
                raise ValueError("Unexpected extra config keys")

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
            assert self.load_config.load_format in ("auto", "hf", "safetensors")
            return ((source.prefix + name, tensor) for name, tensor in expected(Path(source.model_or_path)).items())

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
            yield from self._get_weights_iterator(
                self.Source(
                    model_config.model,
                    model_config.revision,
                    allow_patterns_overrides=getattr(model, "allow_patterns_overrides", None),
                    is_unused_weight=getattr(model, "is_unused_checkpoint_weight", None),
                )
            )
            for source in getattr(model, "secondary_weights", ()):
                yield from self._get_weights_iterator(source)

        def load_weights(self, model: Any, model_config: Any) -> None:
            self.local_expert_ids = getattr(model, "local_expert_ids", None)
            model.load_weights(self.get_all_weights(model_config, model))

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            model = Model()
            self.load_weights(model, model_config)
            return model.eval()

    loaders: dict[str, type[Any]] = {}

    def register_model_loader(load_format: str) -> Callable[[type[Any]], type[Any]]:
        def wrapper(loader: type[Any]) -> type[Any]:
            assert load_format not in loaders and issubclass(loader, BaseModelLoader)
            loaders[load_format] = loader
            return loader

        return wrapper

    def should_skip_weight(name: str, local_expert_ids: set[int] | None) -> bool:
        found = re.search(r"\.experts\.(\d+)\.", name)
        return found is not None and name.endswith(".weight") and int(found[1]) not in (local_expert_ids or ())

    module(
        monkeypatch,
        "vllm.model_executor.model_loader",
        register_model_loader=register_model_loader,
        _LOAD_FORMAT_TO_MODEL_LOADER=loaders,
    )
    module(monkeypatch, "vllm.model_executor.model_loader.default_loader", DefaultModelLoader=DefaultModelLoader)
    module(monkeypatch, "vllm.model_executor.model_loader.ep_weight_filter", should_skip_weight=should_skip_weight)
    module(
        monkeypatch,
        "vllm.distributed.parallel_state",
        get_world_group=Group,
        get_tp_group=Group,
        model_parallel_is_initialized=lambda: True,
    )
    from arzstream.integrations.vllm import register

    register()
    register()
    return loaders


def test_vllm_gets_every_weight_and_reloads_in_place(
    vllm: dict[str, Any], packed_model: Packed, tmp_path: Path
) -> None:
    folder, archive = packed_model("llama", shards=True)
    loader = vllm["arz"](VllmLoadConfig(model_loader_extra_config={"uri": str(archive)}))
    config = VllmModelConfig(str(tmp_path))
    model = Model()
    loader.download_model(config)
    loader.load_weights(model, config)
    equal(model.loaded, expected(folder))
    equal(dict(loader.get_all_weights(config, model)), expected(folder))


def test_vllm_finds_the_archive_beside_the_configuration(
    vllm: dict[str, Any], packed_model: Packed, tmp_path: Path
) -> None:
    folder, archive = packed_model("llama")
    loader = vllm["arz"](VllmLoadConfig())
    with pytest.raises(arzstream.UnsupportedError, match="holds 0 archives"):
        loader.download_model(VllmModelConfig(str(tmp_path)))
    (tmp_path / "m.arz").symlink_to(archive)
    model = Model()
    loader.load_weights(model, VllmModelConfig(str(tmp_path)))
    equal(model.loaded, expected(folder))


def test_vllm_options_that_are_unknown_are_refused(vllm: dict[str, Any]) -> None:
    loader = vllm["arz"](VllmLoadConfig(model_loader_extra_config={"uri": "x.arz", "concurrency": 3}))
    with pytest.raises(ValueError, match="unknown options concurrency"):
        loader.download_model(VllmModelConfig("m"))
    with pytest.raises(ValueError, match="object"):
        vllm["arz"](VllmLoadConfig(model_loader_extra_config="x.arz"))


def test_vllm_reads_no_expert_of_another_rank_and_no_weight_that_is_not_used(
    vllm: dict[str, Any], packed_model: Packed, decoded: list[str]
) -> None:
    folder, archive = packed_model("mixtral")
    loader = vllm["arz"](VllmLoadConfig(model_loader_extra_config={"uri": str(archive)}))
    model: Any = Model()
    model.local_expert_ids = {1, 3}
    model.is_unused_checkpoint_weight = lambda name: name == "lm_head.weight"
    loader.load_weights(model, VllmModelConfig(str(folder)))
    wanted = {
        name: tensor
        for name, tensor in expected(folder).items()
        if not re.search(r"experts\.[02]\.", name) and name != "lm_head.weight"
    }
    equal(model.loaded, wanted)
    assert not any(re.search(r"experts\.[02]\.|lm_head", name) for name in decoded)


def test_vllm_reads_a_second_model_with_its_own_loader(vllm: dict[str, Any], packed_model: Packed) -> None:
    folder, archive = packed_model("llama")
    other, _ = packed_model("bert")
    loader = vllm["arz"](VllmLoadConfig(model_loader_extra_config={"uri": str(archive)}))
    model: Any = Model()
    model.secondary_weights = [loader.Source(str(other), None, prefix="vision.")]
    loader.load_weights(model, VllmModelConfig(str(folder)))
    equal(model.loaded, expected(folder) | {f"vision.{name}": tensor for name, tensor in expected(other).items()})


def test_vllm_reads_a_second_model_in_a_subfolder_of_the_first_one_from_there(
    vllm: dict[str, Any], packed_model: Packed, tmp_path: Path
) -> None:
    (folder, _), (other, _) = packed_model("llama"), packed_model("bert")
    shutil.copytree(folder, tmp_path / "m")
    shutil.copytree(other, tmp_path / "m" / "vision")
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz", profile="fast")
    loader = vllm["arz"](VllmLoadConfig(model_loader_extra_config={"uri": str(tmp_path / "m.arz")}))
    model: Any = Model()
    model.secondary_weights = [loader.Source("main", None, subfolder="vision", prefix="vision.")]
    loader.load_weights(model, VllmModelConfig("main"))
    equal(model.loaded, expected(folder) | {f"vision.{name}": tensor for name, tensor in expected(other).items()})


def test_vllm_reads_a_folder_that_it_is_given_itself(vllm: dict[str, Any], packed_model: Packed) -> None:
    """As those who update weights in place do."""
    (_, archive), (other, _) = packed_model("llama"), packed_model("bert")
    loader = vllm["arz"](VllmLoadConfig(model_loader_extra_config={"uri": str(archive)}))
    equal(dict(loader._get_weights_iterator(loader.Source(str(other), None))), expected(other))


def drafted(vllm: dict[str, Any], main: VllmLoadConfig, draft: str, own: VllmLoadConfig | None = None) -> Any:
    """The two models of a vLLM that speculates, as its ``get_model`` loads them."""
    target, other = VllmModelConfig("main"), VllmModelConfig(draft)
    config = types.SimpleNamespace(
        load_config=main,
        speculative_config=types.SimpleNamespace(
            target_model_config=target, draft_model_config=other, draft_load_config=own
        ),
    )
    loaders = vllm["arz"](main), vllm["arz"](own or config.load_config)
    return [
        loader.load_model(vllm_config=config, model_config=model, prefix="").loaded
        for loader, model in zip(loaders, (target, other), strict=True)
    ]


def test_vllm_fills_a_draft_model_from_its_own_weights_not_from_the_archive_of_the_main_model(
    vllm: dict[str, Any], packed_model: Packed, tmp_path: Path
) -> None:
    (folder, archive), (other, packed) = packed_model("llama"), packed_model("bert")
    main = VllmLoadConfig(model_loader_extra_config={"uri": str(archive), "subfolder": "", "jobs": 1})
    for draft, own in [
        (other, None),
        (tmp_path, None),
        ("draft", VllmLoadConfig(model_loader_extra_config={"uri": str(packed)})),
    ]:
        if draft == tmp_path:
            (tmp_path / "draft.arz").symlink_to(packed)
        first, second = drafted(vllm, main, str(draft), own)
        equal(first, expected(folder))
        equal(second, expected(other))
    for model in drafted(vllm, main, "main"):  # layers of the main model itself
        equal(model, expected(folder))
    (tmp_path / "other.arz").symlink_to(packed)
    with pytest.raises(arzstream.UnsupportedError, match="holds 2 archives"):
        drafted(vllm, main, str(tmp_path))


# -- SGLang


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``get_model_loader`` of an SGLang whose plug-ins were loaded."""

    class HookType(enum.Enum):
        AROUND = "around"

    hooks: dict[str, Any] = {}

    class HookRegistry:
        @classmethod
        def register(cls, target: str, hook: Any, hook_type: Any, *, source: Any = None) -> None:
            assert hook_type is HookType.AROUND
            hooks[target] = hook

    class BaseModelLoader:
        def __init__(self, load_config: Any) -> None:
            self.load_config = load_config

    class DefaultModelLoader(BaseModelLoader):
        @dataclasses.dataclass
        class Source:
            model_or_path: str
            revision: str | None
            prefix: str = ""
            fall_back_to_pt: bool = True
            model_config: Any = None

            @classmethod
            def init_new(cls, model_config: Any, model: Any) -> Any:
                return cls(model_config.model_path, None, model_config=model_config)

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            assert not load_config.model_loader_extra_config

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
            return ((source.prefix + name, tensor) for name, tensor in expected(Path(source.model_or_path)).items())

        def _get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
            yield from self._get_weights_iterator(self.Source.init_new(model_config, model))
            for source in getattr(model, "secondary_weights", ()):
                yield from self._get_weights_iterator(source)

        def load_model(self, *, model_config: Any, device_config: Any) -> Any:
            model = Model()
            model.load_weights(self._get_all_weights(model_config, model))
            return model.eval()

    module(monkeypatch, "sglang.srt.plugins.hook_registry", HookRegistry=HookRegistry, HookType=HookType)
    module(
        monkeypatch,
        "sglang.srt.model_loader.loader",
        BaseModelLoader=BaseModelLoader,
        DefaultModelLoader=DefaultModelLoader,
    )
    module(monkeypatch, "sglang.srt.distributed", get_world_group=Group, get_tp_group=Group)
    from arzstream.integrations.sglang import register

    register()
    around = hooks["sglang.srt.model_loader.loader.get_model_loader"]
    return lambda load_config, *rest: around(lambda config, *_: DefaultModelLoader(config), load_config, *rest)


def sglang_config(extra: Any) -> Any:
    return types.SimpleNamespace(model_loader_extra_config=extra, draft_model_idx=None, load_format="auto")


def test_sglang_loads_an_archive_if_its_option_names_one(
    sglang: Callable[..., Any], packed_model: Packed, tmp_path: Path
) -> None:
    folder, archive = packed_model("llama", shards=True)
    for extra in ({"uri": str(archive)}, json.dumps({"uri": str(archive)})):
        loader = sglang(sglang_config(extra), None)
        config = types.SimpleNamespace(model_path=str(tmp_path))
        loader.download_model(config)
        equal(loader.load_model(model_config=config, device_config=None).loaded, expected(folder))
    with pytest.raises(ValueError, match="unknown options urk"):
        sglang(sglang_config({"uri": str(archive), "urk": 1}))


def test_sglang_without_the_option_is_as_it_was(sglang: Callable[..., Any], packed_model: Packed) -> None:
    folder, _ = packed_model("llama")
    loader = sglang(sglang_config({}))
    assert type(loader).__name__ == "DefaultModelLoader"
    loaded = loader.load_model(model_config=types.SimpleNamespace(model_path=str(folder)), device_config=None).loaded
    equal(loaded, expected(folder))


def test_sglang_fills_a_draft_model_from_its_own_weights_not_from_the_archive_of_the_main_model(
    sglang: Callable[..., Any], packed_model: Packed, tmp_path: Path
) -> None:
    (folder, archive), (other, packed) = packed_model("llama"), packed_model("bert")

    def loaded(path: Path | str, draft: bool) -> dict[str, torch.Tensor]:
        config = types.SimpleNamespace(model_path=str(path), is_draft_model=draft)
        loader = sglang(sglang_config({"uri": str(archive)}), config)
        return loader.load_model(model_config=config, device_config=None).loaded

    equal(loaded("main", False), expected(folder))
    equal(loaded(other, True), expected(other))
    (tmp_path / "draft.arz").symlink_to(packed)
    equal(loaded(tmp_path, True), expected(other))
    equal(loaded("main", True), expected(folder))  # layers of the main model itself


# -- TensorRT-LLM


@pytest.fixture
def tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the weight loader, imported beside a stand-in for its base."""

    class BaseWeightLoader:
        def cleanup(self) -> None:
            pass

    class ConsumableWeightsDict(dict[str, Any]):
        def mark_consumed(self, prefix: str) -> None:
            for key in [key for key in self if key.startswith(prefix + ".")]:
                del self[key]

    module(
        monkeypatch,
        "tensorrt_llm._torch.models.checkpoints.base_weight_loader",
        BaseWeightLoader=BaseWeightLoader,
        ConsumableWeightsDict=ConsumableWeightsDict,
    )
    name = "arzstream.integrations.tensorrt_llm"
    monkeypatch.delitem(sys.modules, name, raising=False)
    import importlib

    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def load_weight_shard(weight: Any, ranks: int, rank: int, dim: int | None) -> torch.Tensor:
    """The steps of TensorRT-LLM's function of this name for what is no torch.Tensor."""
    assert weight.device.type == "cpu" and not isinstance(weight, torch.Tensor)
    shape = weight.get_shape()
    if dim is None or ranks <= 1 or (len(shape) == 1 and dim == 1):
        return weight[slice(None)].to("cpu")
    width = math.ceil(shape[dim] / ranks)
    index = [slice(size) for size in shape]
    index[dim] = slice(rank * width, min((rank + 1) * width, shape[dim]))
    return weight[tuple(index)].to("cpu")


def test_a_rank_of_tensorrt_llm_decodes_its_part(
    tensorrt_llm: Any, packed_model: Packed, tmp_path: Path, bytes_read: Callable[[], int]
) -> None:
    torch.manual_seed(0)
    wanted = {
        "up": torch.randn(1024, 768).bfloat16(),
        "down": torch.randn(768, 1024).bfloat16(),
        "norm": torch.ones(768),
    }
    (tmp_path / "m").mkdir()
    safetensors.torch.save_file(wanted, tmp_path / "m" / "model.safetensors")
    arzstream.pack([tmp_path / "m"], tmp_path / "m.arz", tensor_parallel=4, profile="fast")
    loader = pickle.loads(pickle.dumps(tensorrt_llm.ArzWeightLoader(str(tmp_path / "m.arz"))))
    weights = loader.load_weights(str(tmp_path), mapping=types.SimpleNamespace(gpus_per_node=1))
    before = bytes_read()
    assert torch.equal(load_weight_shard(weights["up"], 4, 2, 0), wanted["up"][512:768])
    assert torch.equal(load_weight_shard(weights["down"], 4, 2, 1), wanted["down"][:, 512:768])
    assert bytes_read() - before < 0.3 * (tmp_path / "m.arz").stat().st_size
    assert torch.equal(load_weight_shard(weights["norm"], 4, 2, None), wanted["norm"])
    assert torch.equal(weights["up"][:], wanted["up"])
    weights.mark_consumed("up")
    loader.cleanup()


def test_whatever_else_is_done_with_a_weight_is_done_with_all_of_it(
    tensorrt_llm: Any, packed_model: Packed, decoded: list[str]
) -> None:
    folder, archive = packed_model("llama")
    loader = tensorrt_llm.ArzWeightLoader(str(archive))
    weights, wanted = loader.load_weights(str(folder), mapping=None), expected(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    weight = weights[name]
    assert weight.shape == wanted[name].shape and weight.dtype == torch.bfloat16 and weight.ndim == 2
    assert len(weight) == 256 and weight.nbytes == wanted[name].nbytes and not decoded
    assert torch.equal(torch.cat([weight, weight]), torch.cat([wanted[name]] * 2))
    assert torch.equal(weight.t(), wanted[name].t()) and torch.equal(weight.reshape(-1), wanted[name].reshape(-1))
    assert len(decoded) == 1
    loader.cleanup()


# -- what they share


def test_weights_come_layer_by_layer_and_are_decoded_as_they_are_taken(
    packed_model: Packed, decoded: list[str]
) -> None:
    _folder, archive = packed_model("llama", shards=True)
    options = ServingOptions(str(archive), jobs=1, prefetch_bytes=0)
    taken = weights_of(options)
    next(taken)
    early = len(decoded)
    layers = [name.split(".")[2] for name, _ in taken if name.startswith("model.layers")]
    assert early <= 3 < len(decoded) and layers == sorted(layers)


def test_files_are_chosen_and_ignored_by_name(packed_model: Packed) -> None:
    folder, archive = packed_model("llama", shards=True)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    options = ServingOptions(str(archive))
    equal(dict(weights_of(options, only=shards[:1])), safetensors.torch.load_file(folder / shards[0]))
    rest = dict(weights_of(options, ignored=[shards[0]]))
    assert rest.keys() == expected(folder).keys() - safetensors.torch.load_file(folder / shards[0]).keys()
    with pytest.raises(arzstream.UnsupportedError, match="nothing"):
        next(weights_of(options, only=["nothing*"]))
