"""One rule per writer: what it waits for, what it does not believe, and when it gives up."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from arzstream.formats import evidence
from arzstream.formats.base import Layout
from arzstream.formats.checkpoint import GIVE_UP, QUIET, FileFacts, Past, assess, common

from .made_up import WEIGHTS, Checkpoint, changed, doubted, saved

# ------------------------------------------------------------------------------------ accelerate, Trainer


def accelerated(ranks: int = 1) -> Checkpoint:
    checkpoint = Checkpoint().put("model.safetensors", age=9).put("optimizer.bin", saved({}), 8)
    for rank in range(ranks):
        checkpoint.put(f"random_states_{rank}.pkl", b"x", 7)
    return checkpoint


def test_accelerate_waits_for_the_random_states_of_each_rank_and_for_quiet() -> None:
    verdict = accelerated().assess()
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "accelerate", "weak")
    assert doubted(accelerated(ranks=0), "", "random_states_0.pkl")
    gap = accelerated(ranks=3)
    del gap.content[b"random_states_1.pkl"]
    assert doubted(gap, "", "random_states_1.pkl")


def test_random_states_of_an_earlier_save_are_not_believed() -> None:
    assert doubted(accelerated().put("model.safetensors", age=6), "", "random_states_0.pkl to be written again")


def test_shards_of_fsdp_are_not_the_whole_of_what_accelerate_saves() -> None:
    checkpoint = Checkpoint().put("pytorch_model_fsdp_0/__0_0.distcp", b"x").put("pytorch_model_fsdp_0/.metadata", b"x")
    assert doubted(checkpoint, "", "random_states_0.pkl")


def test_a_trainers_random_states_may_come_after_its_state_but_none_may_be_left_out() -> None:
    checkpoint = Checkpoint().put("model.safetensors", age=9).json("trainer_state.json", {}, age=8)
    for rank in (0, 2):
        checkpoint.put(f"rng_state_{rank}.pth", b"x", age=6)
    assert doubted(checkpoint, "checkpoint-10", "rng_state_1.pth")
    assert checkpoint.put("rng_state_1.pth", b"x", age=6).assess("checkpoint-10").complete


def of_a_trainer(ranks: list[int], processes: int | None) -> Checkpoint:
    state = {} if processes is None else {"distributed_state": SimpleNamespace(num_processes=processes)}
    checkpoint = Checkpoint().json("config.json", {}, 9).put("model.safetensors", WEIGHTS, 8)
    checkpoint.put("training_args.bin", saved(SimpleNamespace(**state)), 7).json("trainer_state.json", {}, 5.5)
    for rank in ranks:
        checkpoint.put(f"rng_state_{rank}.pth", b"x", 6)
    return checkpoint


def test_a_trainer_of_many_processes_waits_for_as_many_random_states_as_its_arguments_say() -> None:
    verdict = of_a_trainer([0, 1], 2).assess("checkpoint-10")
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "trainer", "good")
    assert of_a_trainer([0, 1], None).assess("checkpoint-10").strength == "weak"
    assert doubted(of_a_trainer([0, 1], 3), "checkpoint-10", "rng_state_2.pth")
    assert doubted(of_a_trainer([0], 2), "checkpoint-10", "rng_state_1.pth")
    assert of_a_trainer([], 2).assess("checkpoint-10").strength == "good"  # it saves the model alone


def test_a_trainers_ranks_with_another_disk_are_not_waited_for_twice() -> None:
    checkpoint = of_a_trainer([0, 1], 4)
    assert doubted(checkpoint, "checkpoint-10", "rng_state_2.pth")
    checkpoint.past = Past(common([list(checkpoint.content)]))
    assert checkpoint.assess("checkpoint-20").strength == "good" and checkpoint.assess("checkpoint-20").complete


def test_a_random_state_that_a_killed_save_left_is_not_believed() -> None:
    assert doubted(of_a_trainer([0, 1], 2).put("rng_state_1.pth", b"x", 11.5), "checkpoint-10",
                   "rng_state_1.pth to be written again")  # fmt: skip
    assert of_a_trainer([0, 1], 2).put("rng_state_1.pth", b"x", 10).assess("checkpoint-10").complete


def test_transformers_own_arguments_tell_how_many_processes_there_are() -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments("/nonexistent", report_to=[], use_cpu=True)
    arguments.distributed_state.num_processes = 3
    checkpoint = of_a_trainer([0, 1], None).put("training_args.bin", saved(arguments), 7)
    arguments.distributed_state.num_processes = 1
    assert checkpoint.assess("checkpoint-10").waiting_for == "rng_state_2.pth"


def test_the_random_state_of_another_rank_is_no_checkpoint_of_a_trainer() -> None:
    first = Checkpoint().put("rng_state_1.pth", b"x", 9)
    assert doubted(first, "checkpoint-2", "trainer_state.json")
    assert doubted(first.json("config.json", {}, 8), "checkpoint-2", "trainer_state.json")


def test_the_wait_for_what_is_only_expected_goes_with_the_wait_that_was_set() -> None:
    facts = dict.fromkeys((b"optimizer.bin", b"model.safetensors"), FileFacts(1, Layout("opaque"), True, 7.0))
    assert not assess(facts, lambda _: None, b"checkpoint-1").complete
    quiet = {"strong": 0.5, "good": 0.5, "weak": 0.5}
    assert assess(facts, lambda _: None, b"checkpoint-1", quiet).complete


# ------------------------------------------------------------------------------------ too large to be read


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of more than 200 bytes is read as a whole."""
    monkeypatch.setattr(evidence, "SMALL_BYTES", 200)


LOG = {"log_history": [{"step": step} for step in range(100)]}


@pytest.mark.usefixtures("little")
def test_a_state_that_is_too_large_to_be_read_is_whole_when_its_last_byte_says_so() -> None:
    checkpoint = Checkpoint().put("model.safetensors", age=9).json("trainer_state.json", LOG, age=8)
    assert checkpoint.assess("checkpoint-10").complete
    half = checkpoint.content[b"trainer_state.json"][:-1]
    checkpoint.put("trainer_state.json", half, 8)
    assert checkpoint.assess("checkpoint-10", later=900).waiting_for == "trainer_state.json"
    assert checkpoint.put("trainer_state.json", half + b"}\n\n", 8).assess("checkpoint-10").complete
    megatron = Checkpoint().put("common.pt", age=9).put(".metadata", b"x", 8).json("metadata.json", LOG, 7)
    assert megatron.assess("any-name").complete


@pytest.mark.usefixtures("little")
def test_an_index_that_is_too_large_to_be_read_leaves_it_to_names_and_quiet() -> None:
    index = {"weight_map": {f"w{n}": "model-00001-of-00002.safetensors" for n in range(100)}}
    checkpoint = Checkpoint().put("model-00001-of-00002.safetensors", age=9)
    checkpoint.json("model.safetensors.index.json", index, 7)
    assert checkpoint.assess(later=1000).waiting_for == "model-00002-of-00002.safetensors"
    told = checkpoint.put("model-00002-of-00002.safetensors", age=8).assess()
    assert (told.complete, told.strength) == (True, "weak")
    assert doubted(checkpoint.put("model-00002-of-00002.safetensors", age=6), "",
                   "model.safetensors.index.json to be written again")  # fmt: skip
    half = checkpoint.content[b"model.safetensors.index.json"][:-2]
    cut = checkpoint.put("model.safetensors.index.json", half, 5).assess()
    assert cut.waiting_for == "model.safetensors.index.json to be valid"


@pytest.mark.usefixtures("little")
def test_what_a_metadata_that_is_too_large_to_be_read_names_is_left_to_quiet() -> None:
    checkpoint = Checkpoint().put("__0_0.distcp", b"x", 8).put(".metadata", bytes(201) + b"__1_0.distcp", 7)
    told = checkpoint.assess()
    assert (told.complete, told.rule, told.strength) == (True, "distributed checkpoint", "weak")
    orbax = Checkpoint().put("default/d/abc", b"x", 8).json("_CHECKPOINT_METADATA", LOG, 7).assess("10")
    assert (orbax.complete, orbax.strength) == (True, "weak")


def test_a_state_that_grows_is_parsed_when_it_may_be_whole_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    counting = SimpleNamespace(loads=lambda raw: (parsed.append(len(raw)), json.loads(raw))[1])
    monkeypatch.setattr(evidence, "json", counting)
    checkpoint = Checkpoint().put("model.safetensors", age=9).json("trainer_state.json", LOG, age=8)
    whole = checkpoint.content[b"trainer_state.json"]
    for end in range(1, len(whole) - 1):
        assert not checkpoint.put("trainer_state.json", whole[:end], 8).assess("checkpoint-10").complete
    assert len(parsed) == whole[:-2].count(b"}")
    assert checkpoint.put("trainer_state.json", whole, 8).assess("checkpoint-10").complete


# ------------------------------------------------------------------------------------ Orbax


def test_orbax_is_complete_when_it_was_committed() -> None:
    checkpoint = Checkpoint().put("default/d/abc", b"x", 3).json("_CHECKPOINT_METADATA", {"init_timestamp_nsecs": 1}, 2)
    assert checkpoint.assess("10").waiting_for == "the commit of _CHECKPOINT_METADATA"
    told = checkpoint.json("_CHECKPOINT_METADATA", {"commit_timestamp_nsecs": 2}, 2).assess("10")
    assert (told.complete, told.rule, told.strength) == (True, "orbax", "strong")
    assert checkpoint.put("commit_success.txt", b"x", 1).assess("10").complete
    assert doubted(checkpoint.put("default/d/abc", b"y", 0.5), "10", "commit_success.txt to be written again")


def test_the_commit_of_an_item_of_orbax_speaks_for_that_item_alone() -> None:
    checkpoint = Checkpoint().put("default/d/abc", b"x", 9).put("default/commit_success.txt", b"x", 8)
    told = checkpoint.assess("10")
    assert (told.complete, told.rule, told.strength) == (True, "orbax", "weak")  # its folder's own may follow
    checkpoint.put("dataset/state.json", b"x", 7)
    assert doubted(checkpoint, "10", "dataset/commit_success.txt")
    assert checkpoint.put("dataset/commit_success.txt", b"x", 6).assess("10").complete
    assert doubted(checkpoint.put("default/d/abc", b"y", 5.5), "10", "default/commit_success.txt to be written again")
    told = checkpoint.put("commit_success.txt", b"x", 1).assess("10")
    assert (told.complete, told.strength) == (True, "strong")


def test_items_of_orbax_that_lie_deeper_need_their_commits_too() -> None:
    checkpoint = Checkpoint().put("a/state/d/abc", b"x", 9).put("a/state/commit_success.txt", b"x", 8)
    checkpoint.put("notes.txt", b"x", 7).put("a/notes.txt", b"x", 7)
    assert checkpoint.assess("10").complete
    assert doubted(checkpoint.put("a/other/d/abc", b"x", 7), "10", "a/other/commit_success.txt")


# ------------------------------------------------------------------------------------ what came before


def test_what_the_checkpoints_before_had_is_waited_for() -> None:
    checkpoint = Checkpoint().put("model.safetensors", age=QUIET["weak"] + 1)
    assert checkpoint.assess("step_3").complete
    saves = [[b"model.safetensors", b"optimizer.pt", b"log.txt"], [b"model.safetensors", b"optimizer.pt", b"extra.pt"]]
    checkpoint.past = Past(common(saves))
    assert checkpoint.past.names == {b"model.safetensors", b"optimizer.pt"}
    assert doubted(checkpoint, "step_3", "optimizer.pt, as before")
    assert checkpoint.put("optimizer.pt", saved({}), 6).assess("step_3").complete


def test_names_that_count_steps_are_the_same_in_each_checkpoint() -> None:
    saves = [[b"global_step10/mp_rank_00_model_states.pt", b"step_10.pt", b"model-00001-of-00002.safetensors"]]
    names = {b"global_step#/mp_rank_00_model_states.pt", b"step_#.pt", b"model-00001-of-00002.safetensors"}
    assert common(saves) == names
    checkpoint = (
        Checkpoint().put("global_step20/mp_rank_00_model_states.pt", WEIGHTS, 6).put("step_20.pt", saved({}), 6)
    )
    checkpoint.past = Past(frozenset(names - {b"model-00001-of-00002.safetensors"}))
    assert "as before" not in checkpoint.assess("checkpoint-20").waiting_for


def archived(checkpoint: Checkpoint) -> Checkpoint:
    written = {p: (len(content), changed(checkpoint.age[p])) for p, content in checkpoint.content.items()}
    checkpoint.past = Past(frozenset(), written)
    return checkpoint


def test_a_checkpoint_that_is_written_again_is_a_mixture_until_all_its_state_is_new() -> None:
    checkpoint = archived(
        Checkpoint().put("model.pt", saved({}), 100).put("optimizer.pt", saved({}), 99).json("config.json", {}, 98)
    )
    checkpoint.put("model.pt", saved({}), 6)
    assert doubted(checkpoint, "last", "optimizer.pt to be written again")
    assert checkpoint.put("optimizer.pt", saved({}), 5.5).assess("last").complete  # a configuration may stay


def test_what_is_left_of_an_archived_checkpoint_is_no_new_one() -> None:
    checkpoint = archived(Checkpoint().put("model.pt", saved({}), 100).put("optimizer.pt", saved({}), 99))
    assert checkpoint.assess("step_1").complete
    del checkpoint.content[b"model.pt"]
    verdict = checkpoint.assess("step_1", later=10 * GIVE_UP)
    assert not verdict.complete and "archived" in verdict.waiting_for
    assert checkpoint.put("optimizer.pt", saved({}), 6).assess("step_1").complete


def test_a_temporary_file_of_a_writer_that_crashed_is_not_waited_for() -> None:
    checkpoint = Checkpoint().put("model.safetensors", age=6).put(".tmpAbC", WEIGHTS[:50], age=50)
    assert checkpoint.assess("step_1").complete
    checkpoint.open.add(b".tmpAbC")  # somebody still has it open
    assert checkpoint.assess("step_1").waiting_for == ".tmpAbC to be renamed"
    checkpoint.open.clear()
    assert not checkpoint.put(".tmpAbC", WEIGHTS[:50], age=5.5).assess("step_1").complete  # it is the newest of all


def test_a_file_with_state_that_was_opened_and_has_nothing_yet_is_waited_for() -> None:
    """However long its writer takes: a file that is written again begins empty, and its other files are whole."""
    checkpoint = Checkpoint().put("__0_0.distcp", b"x", 30).put(".metadata", b"x", 29).put("meta.pt", b"", 28)
    checkpoint.open.add(b"meta.pt")
    assert checkpoint.assess("last.ckpt").waiting_for == "the first bytes of meta.pt"
    assert checkpoint.assess("last.ckpt", later=GIVE_UP).complete
    checkpoint.open.clear()
    assert checkpoint.assess("last.ckpt").complete  # it is closed, and as empty as that
    assert Checkpoint().put("model.pt", saved({}), 9).put("notes.txt", b"", 9).assess("step-1").complete


def test_json_that_nobody_closed_and_that_does_not_end_is_waited_for() -> None:
    checkpoint = Checkpoint().put("model.safetensors", WEIGHTS, 30).json("config.json", {"a": [1]}, 9)
    for content in (b"", b'{"a": 1, ', b'{"a": '):
        checkpoint.put("generation_config.json", content, 9)
        checkpoint.open = {b"generation_config.json", b"config.json"}
        assert checkpoint.assess("checkpoint-2").waiting_for == "the rest of generation_config.json"
        assert checkpoint.assess("checkpoint-2", later=GIVE_UP).complete
        checkpoint.open.clear()
        assert checkpoint.assess("checkpoint-2").complete
    checkpoint.put("generation_config.json", b'{"a": 1}\n', 9).open = {b"generation_config.json"}
    assert checkpoint.assess("checkpoint-2").complete


def test_what_is_waited_for_is_one_line_whatever_an_index_or_a_folder_names() -> None:
    for name in ("a\nb.safetensors", "x" * 100_000, "\u2028\ud800.bin"):
        index = {"weight_map": {"w": name}}
        waiting = Checkpoint().json("model.safetensors.index.json", index).assess().waiting_for
        assert waiting.isprintable() and 0 < len(waiting) < 1000
    assert Checkpoint().put("a\nb.safetensors", WEIGHTS[:20]).assess().waiting_for == "the rest of a\\nb.safetensors"
