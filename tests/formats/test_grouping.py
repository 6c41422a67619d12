from __future__ import annotations

import pytest

from arzstream.formats.grouping import group, is_model_file, is_temporary

CASES = {
    "lone files in the watched folder": (
        "a.safetensors b.pt notes.txt config.yaml latest",
        {"a.safetensors": "a.safetensors", "b.pt": "b.pt"},
    ),
    "save_pretrained into the watched folder": (
        "config.json model.safetensors tokenizer.json sub/x.txt",
        {"": "config.json model.safetensors sub/x.txt tokenizer.json"},
    ),
    "shards in the watched folder": (
        "model-00002-of-00003.safetensors extra.txt",
        {"": "extra.txt model-00002-of-00003.safetensors"},
    ),
    "a run with a final model and checkpoints": (
        "exp7/config.json exp7/model.safetensors exp7/tb/events exp7/checkpoint-10/model.safetensors"
        " exp7/checkpoint-10/tb/x exp7/checkpoint-2/trainer_state.json",
        {
            "exp7": "exp7/config.json exp7/model.safetensors exp7/tb/events",
            "exp7/checkpoint-10": "exp7/checkpoint-10/model.safetensors exp7/checkpoint-10/tb/x",
            "exp7/checkpoint-2": "exp7/checkpoint-2/trainer_state.json",
        },
    ),
    "deepspeed inside a trainer's checkpoint": (
        "checkpoint-10/trainer_state.json checkpoint-10/global_step10/mp_rank_00_model_states.pt checkpoint-10/latest",
        {
            "checkpoint-10": "checkpoint-10/global_step10/mp_rank_00_model_states.pt checkpoint-10/latest"
            " checkpoint-10/trainer_state.json"
        },
    ),
    "deepspeed on its own": (
        "out/latest out/global_step20/mp_rank_00_model_states.pt out/global_step20/zero/rank_0.pt",
        {"out/global_step20": "out/global_step20/mp_rank_00_model_states.pt out/global_step20/zero/rank_0.pt"},
    ),
    "megatron, with the files one folder down": (
        "iter_0001000/mp_rank_00/model_optim_rng.pt iter_0001000/mp_rank_01/model_optim_rng.pt latest.txt",
        {"iter_0001000": "iter_0001000/mp_rank_00/model_optim_rng.pt iter_0001000/mp_rank_01/model_optim_rng.pt"},
    ),
    "checkpoints side by side that count": (
        "runs/e1/epoch=1-step=200.ckpt runs/e1/epoch=2-step=400.ckpt runs/e1/last.ckpt runs/e2/ckpt_5.pt"
        " runs/e2/log.txt",
        {
            path: path
            for path in (
                "runs/e1/epoch=1-step=200.ckpt",
                "runs/e1/epoch=2-step=400.ckpt",
                "runs/e1/last.ckpt",
                "runs/e2/ckpt_5.pt",
            )
        },
    ),
    "weights and optimiser in a folder": (
        "step_100/model.safetensors step_100/optimizer.pt step_200/model.safetensors",
        {"step_100": "step_100/model.safetensors step_100/optimizer.pt", "step_200": "step_200/model.safetensors"},
    ),
    "distributed checkpoint": (
        "ck/__0_0.distcp ck/__1_0.distcp ck/.metadata",
        {"ck": "ck/.metadata ck/__0_0.distcp ck/__1_0.distcp"},
    ),
    "a diffusion pipeline": (
        "pipe/model_index.json pipe/unet/config.json pipe/unet/model.safetensors pipe/vae/model.safetensors",
        {"pipe": "pipe/model_index.json pipe/unet/config.json pipe/unet/model.safetensors pipe/vae/model.safetensors"},
    ),
    "temporary files": (
        "checkpoint-10/.tmpAbC checkpoint-11/config.json checkpoint-11/.tmpX tmp-checkpoint-5/m.pt ck.tmp/m.pt .tmpQ"
        " runs/.tmpZ m.safetensors.tmp x.txt.tmp",
        {
            "checkpoint-10": "checkpoint-10/.tmpAbC",
            "checkpoint-11": "checkpoint-11/.tmpX checkpoint-11/config.json",
            ".tmpQ": ".tmpQ",
            "runs/.tmpZ": "runs/.tmpZ",
            "m.safetensors.tmp": "m.safetensors.tmp",
        },
    ),
    "the index of a variant, and shards that may follow": (
        "m/model.safetensors.index.fp16.json m/README.md",
        {"m": "m/README.md m/model.safetensors.index.fp16.json"},
    ),
    "ONNX models whose weights lie beside them": (
        "m.onnx m.onnx.data m.onnx.dataset runs/epoch_1.onnx runs/epoch_1.onnx.data"
        " runs/epoch_2.onnx runs/epoch_2.onnx_data_1"
        " out/m.onnx out/m.onnx_data early/m.onnx.data",
        {
            "m.onnx": "m.onnx",
            "m.onnx.data": "m.onnx.data",
            "runs/epoch_1.onnx": "runs/epoch_1.onnx",
            "runs/epoch_1.onnx.data": "runs/epoch_1.onnx.data",
            "runs/epoch_2.onnx": "runs/epoch_2.onnx",
            "runs/epoch_2.onnx_data_1": "runs/epoch_2.onnx_data_1",
            "out": "out/m.onnx out/m.onnx_data",
        },
    ),
    "what Keras and NeMo write": (
        "ckpt/epoch_01.keras ckpt/notes.txt nemo/step=10.nemo last/model.keras",
        {
            "ckpt/epoch_01.keras": "ckpt/epoch_01.keras",
            "nemo/step=10.nemo": "nemo/step=10.nemo",
            "last": "last/model.keras",
        },
    ),
    "a name that is not UTF-8": ("\udcff/model.safetensors", {"\udcff": "\udcff/model.safetensors"}),
    "nothing": ("", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_files_are_grouped_by_checkpoint(case: str) -> None:
    def raw(text: str) -> bytes:
        return text.encode("utf-8", "surrogateescape")

    paths, expected = CASES[case]
    assert group(map(raw, paths.split())) == {raw(k): list(map(raw, v.split())) for k, v in expected.items()}


@pytest.mark.parametrize(
    "path",
    [
        ".tmpAb12",
        "a/.tmp123/b",
        "x.tmp",
        "x.partial",
        "ck-tmp",
        "a.incomplete",
        "5.orbax-checkpoint-tmp-17",
        ".metadata.tmp",
    ],
)
def test_temporary_names_are_known(path: str) -> None:
    assert is_temporary(path.encode())


@pytest.mark.parametrize(
    "path", ["model.safetensors", "tmp/model.pt", "attempt.pt", "a.tmpl", "template.json", ".metadata"]
)
def test_other_names_are_not_temporary(path: str) -> None:
    assert not is_temporary(path.encode())


def test_model_files_are_known_by_name() -> None:
    assert is_model_file(b"a/Model.SafeTensors") and is_model_file(b"x.pt") and is_model_file(b"m.safetensors.tmp")
    assert not is_model_file(b"config.json") and not is_model_file(b"x.txt.tmp") and not is_model_file(b"ptx")
