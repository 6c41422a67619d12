"""The rules for writers of many ranks: torch.distributed.checkpoint, Lightning, Megatron, DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from arzstream.formats.checkpoint import Past, common

from .made_up import Checkpoint, changed, doubted, saved


def test_metadata_of_a_distributed_checkpoint_names_the_files_that_must_be_there() -> None:
    checkpoint = Checkpoint().put("__0_0.distcp", b"x", 2).put(".metadata", b"..__0_0.distcp..__1_0.distcp..", 1)
    assert checkpoint.assess(later=1000).waiting_for == "__1_0.distcp"
    assert checkpoint.put("__1_0.distcp", b"x", 2).assess().complete


def test_a_part_with_things_of_any_kind_in_it_ends_where_its_metadata_says() -> None:
    """Tensors and other objects, one file of torch.save after the other, which no structure around them counts."""
    part = saved({"step": 1}) + saved(torch.ones(3)) + saved({"betas": (0.9, 0.999)})
    checkpoint = Checkpoint().put("__0_0.distcp", part[:-30], 2)
    assert checkpoint.assess(later=1000).waiting_for == ".metadata"
    assert checkpoint.put("__0_0.distcp", part + b"x", 2).put(".metadata", b"x", 1).assess().complete


def test_without_collectives_each_rank_has_metadata_of_its_own() -> None:
    checkpoint = Checkpoint().put("__0_0.distcp", b"x", 2).put("__0.metadata", b"x", 1).put("__1_0.distcp", b"x", 2)
    assert checkpoint.assess(later=1000).waiting_for == "__1.metadata"
    assert checkpoint.put("__1.metadata", b"x", 1).assess().complete


def test_parts_that_are_not_named_after_a_rank_are_spoken_for_by_none() -> None:
    checkpoint = Checkpoint().put("model.distcp", b"x", 3).put("__0.metadata", b"x", 2).put("__x_.distcp", b"x", 3)
    assert checkpoint.assess().complete
    assert checkpoint.put("__7_0.distcp", b"x", 3).assess().waiting_for == "__7.metadata"


def test_lightning_in_shards_waits_for_its_meta() -> None:
    checkpoint = Checkpoint().put("__0_0.distcp", b"x", 3).put(".metadata", b"x", 2)
    assert checkpoint.assess("step-1").complete
    assert doubted(checkpoint, "last.ckpt", "meta.pt")
    verdict = checkpoint.put("meta.pt", saved({}), 1).assess("last.ckpt")
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "lightning", "strong")
    assert doubted(checkpoint.put("meta.pt", saved({}), 9), "last.ckpt", "meta.pt to be written again")


TRACKER = "latest_checkpointed_iteration.txt"
BRIDGE = {"train_state.pt": 6.8, "run_config.yaml": 6.4, "tokenizer/tokenizer.json": 6.3}


def megatron(*lacking: str, later: Iterable[str] = ()) -> Checkpoint:
    """As Megatron-LM saves, which writes its tracker last; ``later``: what Megatron-Bridge has beside that."""
    checkpoint = Checkpoint().put("common.pt", saved({}), 9).put("__0_0.distcp", b"x", 8).put(".metadata", b"x", 7.5)
    checkpoint.json("metadata.json", {"sharded_backend": "torch_dist"}, 7)
    for name in later:
        checkpoint.put(name, saved({}), BRIDGE[name])
    for name in lacking:
        del checkpoint.content[name.encode()]
    checkpoint.around[TRACKER.encode()] = (b"10", changed(6.5))
    return checkpoint


def test_megatron_waits_for_its_metadata_json() -> None:
    checkpoint = Checkpoint().put("common.pt", saved({}), 4)
    assert checkpoint.assess("iter_0000010", later=1000).waiting_for == "metadata.json"
    checkpoint.put("__0_0.distcp", b"x", 3).put(".metadata", b"x", 2)
    assert checkpoint.assess("any-name", later=1000).waiting_for == "metadata.json"
    verdict = checkpoint.json("metadata.json", {"sharded_backend": "torch_dist"}).assess("any-name")
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "megatron", "strong")
    old = checkpoint.json("metadata.json", {"sharded_backend": "torch_dist"}, age=9)
    assert doubted(old, "iter_0000010", "metadata.json to be written again")


def test_a_trainer_of_megatron_writes_its_tracker_after_metadata_json() -> None:
    """Whatever the parts are made of: a core of 0.20 has no common.pt, other formats have no metadata.json."""
    for lacking in ((), ("common.pt",), ("common.pt", "metadata.json")):
        checkpoint = megatron(*lacking)
        verdict = checkpoint.assess("iter_0000010")
        assert (verdict.complete, verdict.rule) == (True, "megatron")
        for tracker in ({}, {TRACKER.encode(): (b"5", changed(60))}):
            checkpoint.around = tracker
            assert doubted(checkpoint, "iter_0000010", f"{TRACKER} to be written")
    assert Checkpoint().put("__0_0.distcp", b"x", 2).put(".metadata", b"x").assess("iter_100").complete  # of others
    nested = megatron().put("modelopt_state/common.pt", saved({}), 6)
    assert doubted(nested, "iter_0000010", f"{TRACKER} to be written")


def test_what_megatron_bridge_writes_after_its_metadata_json_is_waited_for() -> None:
    checkpoint = megatron(later=["train_state.pt"])
    assert doubted(checkpoint, "iter_0000010", "run_config.yaml")
    verdict = checkpoint.put("run_config.yaml", b"x", 6.4).assess("iter_0000010")
    assert (verdict.complete, verdict.strength) == (True, "weak")  # a tokenizer may follow
    assert doubted(checkpoint.put("run_config.yaml", b"x", 99), "iter_0000010", "run_config.yaml to be written again")


@pytest.mark.parametrize("later", [[], ["train_state.pt", "run_config.yaml"], list(BRIDGE)], ids=len)
def test_the_checkpoints_before_tell_what_megatron_writes_after_its_metadata_json(later: list[str]) -> None:
    """All of it is waited for, and nothing else, so that quiet need not tell."""
    past = Past(common([list(megatron(later=later).content)]))
    for name in later:
        few = megatron(name, later=later)
        few.past = past
        assert doubted(few, "iter_0000020", f"{name}, as before")
    checkpoint = megatron(later=later)
    checkpoint.past = past
    verdict = checkpoint.assess("iter_0000020")
    assert (verdict.complete, verdict.strength, verdict.rule) == (True, "strong", "megatron")
    checkpoint.around = {}  # there would be a tracker, if this run had one
    assert checkpoint.assess("iter_0000020").complete


def test_a_tokenizer_of_megatrons_that_was_not_written_again_yet_leaves_it_to_quiet() -> None:
    checkpoint = megatron(later=BRIDGE)
    path = b"tokenizer/tokenizer.json"
    for age, strength in ((99.0, "weak"), (6.3, "strong")):
        written = {path: (len(checkpoint.content[path]), changed(99))}
        checkpoint.past = Past(common([list(checkpoint.content)]), written)
        verdict = checkpoint.put(path.decode(), checkpoint.content[path], age).assess("iter_0000010")
        assert (verdict.complete, verdict.strength) == (True, strength)


def test_megatrons_files_of_ranks_wait_for_the_tracker_and_leave_no_gap() -> None:
    checkpoint = Checkpoint()
    for rank in ("00_000", "00_001", "01_000"):
        checkpoint.put(f"mp_rank_{rank}/model_optim_rng.pt", saved({}), 3)
    assert doubted(checkpoint, "iter_0000010", "mp_rank_01_001")
    checkpoint.put("mp_rank_01_001/model_optim_rng.pt", saved({}), 3)
    assert doubted(checkpoint, "iter_0000010", "latest_checkpointed_iteration.txt to be written")
    checkpoint.around[b"latest_checkpointed_iteration.txt"] = (b"9", changed(9))
    assert doubted(checkpoint, "iter_0000010", "latest_checkpointed_iteration.txt to be written")
    checkpoint.around[b"latest_checkpointed_iteration.txt"] = (b"10", changed(2))
    assert checkpoint.assess("iter_0000010").complete


def deepspeed(ranks: int, world: int | None, latest: bytes | None = b"global_step10", **more: Any) -> Checkpoint:
    sizes = {} if world is None else {"dp_world_size": world, "mp_world_size": 1}
    state = {"module": {}, "optimizer": None, "param_shapes": [{}], **sizes, **more}
    checkpoint = Checkpoint().put("mp_rank_00_model_states.pt", saved(state), 7)
    for rank in range(ranks):
        checkpoint.put(f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", saved({}), 7)
    if latest is not None:
        checkpoint.around[b"latest"] = (latest, changed(6))
    return checkpoint


def test_deepspeed_waits_for_as_many_ranks_as_its_model_states_say() -> None:
    verdict = deepspeed(2, 2).assess("global_step10")
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "deepspeed", "good")
    few = deepspeed(2, 3).assess("global_step10", later=1000)
    assert few.waiting_for == "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt"
    assert deepspeed(0, 1).assess("global_step10", later=1000).waiting_for == (
        "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    )


def test_deepspeed_without_an_optimizer_has_no_states_of_one() -> None:
    verdict = deepspeed(0, 2, param_shapes=None).assess("global_step10")
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "deepspeed", "good")


@pytest.mark.parametrize("shard", [2, 3, 4])
def test_of_deepspeeds_groups_of_mics_the_first_one_writes(shard: int) -> None:
    checkpoint = Checkpoint()
    for rank in range(2):
        state = {"module": {}, "optimizer": None, "param_shapes": [{}], "dp_world_size": 4, "mp_world_size": 1}
        checkpoint.put(f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", saved(state), 8)
        state = {"optimizer_state_dict": {"zero_stage": 3, "partition_count": shard}}
        checkpoint.put(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", saved(state), 7)
    checkpoint.around[b"latest"] = (b"global_step10", changed(6))
    verdict = checkpoint.assess("global_step10", later=1000)
    assert verdict.complete == (shard == 2)
    assert verdict.waiting_for == ("" if shard == 2 else "zero_pp_rank_2_mp_rank_00_model_states.pt")


@pytest.mark.parametrize("latest", [b"global_step10", None], ids=["first machine", "another"])
def test_deepspeeds_ranks_with_another_disk_are_not_waited_for_twice(latest: bytes | None) -> None:
    settings = {"checkpoint": {"use_node_local_storage": True}}
    checkpoint = deepspeed(4, 4, latest, ds_config=settings)
    missing = f"bf16_zero_pp_rank_{2 if latest else 0}_mp_rank_00_optim_states.pt"
    for rank in (2, 3) if latest else (0, 1):
        del checkpoint.content[f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt".encode()]
    assert doubted(checkpoint, "global_step10", missing)
    checkpoint.past = Past(common([list(checkpoint.content)]))
    verdict = checkpoint.assess("global_step10")
    assert (verdict.complete, verdict.strength) == (True, "weak")
    del checkpoint.content[b"bf16_zero_pp_rank_%d_mp_rank_00_optim_states.pt" % (1 if latest else 3)]
    assert doubted(checkpoint, "global_step10", f"bf16_zero_pp_rank_{1 if latest else 3}_mp_rank_00_optim_states.pt")


def test_deepspeed_of_unknown_size_has_no_gaps_and_needs_quiet() -> None:
    assert deepspeed(3, None).assess("global_step10").strength == "weak"
    gap = deepspeed(3, None)
    del gap.content[b"bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"]
    assert doubted(gap, "global_step10", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")


def test_a_rank_of_any_number_in_a_name_is_not_counted_up_to() -> None:
    for name in (f"mp_rank_{2**63}_model_states.pt", f"zero_pp_rank_{2**63}_mp_rank_00_model_states.pt"):
        checkpoint = Checkpoint().put(f"global_step10/{name}", saved({}), 9)
        assert checkpoint.assess("global_step10").rule == "deepspeed"


def test_deepspeeds_latest_is_believed_if_it_is_newer_and_names_the_folder() -> None:
    waiting = "latest to name global_step10"
    for latest in (None, b"", b"global_step9"):
        early = deepspeed(2, 2, latest)
        early.around = {name: (content, changed(9)) for name, (content, _) in early.around.items()}
        assert doubted(early, "global_step10", waiting)
    assert deepspeed(2, 2, b"global_step11").assess("global_step10").complete  # finished, and another one after it
    late = deepspeed(2, 2).put("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", saved({}), 5.5)
    assert late.assess("global_step10").complete  # the second rank is written after the first one's word
    again = deepspeed(2, 2).put("mp_rank_00_model_states.pt", late.content[b"mp_rank_00_model_states.pt"], 5.5)
    assert doubted(again, "global_step10", waiting)


def test_deepspeeds_ranks_are_read_without_unpickling() -> None:
    """A pickle that would call something is walked like any other."""

    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("it was executed",)

    state = {"module": Canary(), "dp_world_size": 2, "mp_world_size": 1}
    checkpoint = deepspeed(1, None).put("mp_rank_00_model_states.pt", saved(state), 7)
    assert checkpoint.assess("global_step10").waiting_for == "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
