from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from arzstream.formats.base import Layout
from arzstream.formats.checkpoint import GIVE_UP, QUIET, FileFacts, assess, common
from arzstream.formats.detect import parser_for
from arzstream.formats.grouping import group

from .made_up import WEIGHTS, Checkpoint, saved


def test_a_single_file_is_complete_when_its_structure_is_and_it_was_closed() -> None:
    for content, name in ((WEIGHTS, "a.safetensors"),):
        good = Checkpoint().put(name, content, age=0.3).assess()
        assert (good.complete, good.strength, good.waiting_for) == (True, "good", "")
        cut = Checkpoint().put(name, content[:-1], age=0.3).assess()
        assert (cut.complete, cut.waiting_for) == (False, f"the rest of {name}")
        fresh = Checkpoint().put(name, content, age=0.05).assess()
        assert not fresh.complete and "without a change" in fresh.waiting_for


def test_a_file_that_was_not_seen_closed_needs_the_quiet_of_a_weak_rule() -> None:
    """As with safetensors 0.8.0-rc.0, whose size and header prove nothing."""
    checkpoint = Checkpoint().put("a.safetensors", age=QUIET["weak"] - 1)
    checkpoint.open.add(b"a.safetensors")
    verdict = checkpoint.assess()
    assert not verdict.complete and verdict.quiet == QUIET["weak"]
    assert checkpoint.assess(later=1).complete


def test_a_broken_file_is_taken_as_it_is_in_the_end() -> None:
    checkpoint = Checkpoint().put("a.safetensors", WEIGHTS[:50], age=1)
    assert not checkpoint.assess().complete
    assert checkpoint.assess(later=GIVE_UP).complete


def sharded(age: float = 1.0, shards: int = 3, index_age: float | None = 1.0) -> Checkpoint:
    checkpoint = Checkpoint().json("config.json", {}, age=9)
    weights = {}
    for i in range(1, shards + 1):
        name = f"model-{i:05}-of-{shards:05}.safetensors"
        checkpoint.put(name, safetensors.torch.save({f"w{i}": torch.ones(2)}), age)
        weights[f"w{i}"] = name
    if index_age is not None:
        checkpoint.json("model.safetensors.index.json", {"metadata": {}, "weight_map": weights}, index_age)
    return checkpoint


def test_a_sharded_checkpoint_needs_every_shard_and_the_index() -> None:
    verdict = sharded().assess()
    assert (verdict.complete, verdict.strength, verdict.rule) == (True, "good", "sharded")
    for missing in (b"model-00001-of-00003.safetensors", b"model-00003-of-00003.safetensors"):
        checkpoint = sharded()
        del checkpoint.content[missing]
        verdict = checkpoint.assess(later=10 * GIVE_UP)
        assert (verdict.complete, verdict.waiting_for) == (False, missing.decode())
    verdict = sharded(index_age=None).assess()
    assert (verdict.complete, verdict.waiting_for) == (False, "model.safetensors.index.json")
    assert sharded(index_age=None).assess(later=GIVE_UP).complete
    early = sharded(index_age=None)
    del early.content[b"model-00002-of-00003.safetensors"]
    assert early.assess(later=10 * GIVE_UP).waiting_for == "model-00002-of-00003.safetensors"
    checkpoint = sharded().put("model-00002-of-00003.safetensors", WEIGHTS[:-1])
    assert checkpoint.assess().waiting_for == "the rest of model-00002-of-00003.safetensors"


def test_an_index_that_was_left_behind_is_not_believed() -> None:
    older = sharded(age=1, index_age=50).assess()
    assert not older.complete and older.strength == "weak"  # same names, but written after the index
    other = sharded().put("model-00002-of-00003.safetensors", safetensors.torch.save({"else": torch.ones(1)}))
    assert "to hold 'w2'" in other.assess().waiting_for
    gone = Checkpoint().put("model.safetensors", age=6)  # the new save has no shards, the old index lists some
    gone.json("model.safetensors.index.json", {"weight_map": {"w": "model-00001-of-00002.safetensors"}}, age=50)
    assert gone.assess().complete and gone.assess().strength == "weak"
    half = sharded().put("model.safetensors.index.json", b'{"weight_map": {')
    assert half.assess().waiting_for == "model.safetensors.index.json to be valid"
    alone = Checkpoint().json("model.safetensors.index.json", {"weight_map": {"w": "model-00001-of-00002.safetensors"}})
    assert alone.assess(later=10 * GIVE_UP).waiting_for == "model-00001-of-00002.safetensors"
    escape = Checkpoint().json("model.safetensors.index.json", {"weight_map": {"w": "../../etc/passwd"}})
    assert not escape.assess(later=10 * GIVE_UP).complete


def shards(pattern: str, numbers: Iterable[int], total: int, age: float = 1.0, **holding: bytes) -> Checkpoint:
    checkpoint = Checkpoint().json("config.json", {}, age=9)
    for number in numbers:
        checkpoint.put(pattern.format(f"{number:05}-of-{total:05}"), **{"content": WEIGHTS, **holding}, age=age)
    return checkpoint


def test_the_index_of_a_variant_is_an_index() -> None:
    """As transformers and diffusers name both: ``save_pretrained(variant="fp16")``."""
    checkpoint = shards("model.fp16-{}.safetensors", [1], 1)
    assert checkpoint.assess().waiting_for
    index = {"weight_map": {"w": "model.fp16-00001-of-00001.safetensors"}}
    verdict = checkpoint.json("model.safetensors.index.fp16.json", index, 0.5).assess()
    assert (verdict.complete, verdict.strength, verdict.rule) == (True, "good", "sharded")
    assert common([[b"model.safetensors.index.fp16.json"]])


def test_shards_of_gguf_have_no_index_but_each_of_them_is_needed() -> None:
    gguf = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
    checkpoint = shards("m-{}.gguf", [1, 2], 3, content=gguf)
    assert checkpoint.assess(later=10 * GIVE_UP).waiting_for == "m-00003-of-00003.gguf"
    verdict = checkpoint.put("m-00003-of-00003.gguf", gguf).assess()
    assert (verdict.complete, verdict.strength) == (True, "good")


def test_shards_of_ranks_have_no_index_and_their_ranks_are_not_counted() -> None:
    """torch.distributed.checkpoint's ``HuggingFaceStorageWriter``; a rank writes the files that it has a part of."""
    checkpoint = shards("sharded/shard-00001-model-{}.safetensors", [1, 3], 3, age=6)
    missing = "sharded/shard-*-model-00002-of-00003.safetensors"
    assert checkpoint.assess(later=10 * GIVE_UP).waiting_for == missing
    verdict = checkpoint.put("sharded/shard-00002-model-00002-of-00003.safetensors", age=6).assess()
    assert (verdict.complete, verdict.strength) == (True, "weak")
    checkpoint.put("model-00001-of-00001.safetensors", age=6)  # what they are consolidated to has one
    assert checkpoint.assess(later=9).waiting_for == "model.safetensors.index.json"
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    assert checkpoint.json("model.safetensors.index.json", index, 5.5).assess().complete


def test_a_tensor_that_is_stored_as_several_has_one_name_in_an_index() -> None:
    weights = saved({"layer.weight": torch.eye(3).to_sparse(), "layer.bias": torch.ones(3)})
    checkpoint = shards("pytorch_model-{}.bin", [1], 1, content=weights)
    names = dict.fromkeys(["layer.weight", "layer.bias"], "pytorch_model-00001-of-00001.bin")
    assert checkpoint.json("pytorch_model.bin.index.json", {"weight_map": names}, 0.5).assess().complete
    names["layer.b"] = names["layer.bias"]
    more = checkpoint.json("pytorch_model.bin.index.json", {"weight_map": names}, 0.5).assess()
    assert "to hold 'layer.b'" in more.waiting_for


def trainer(age: float = 1.0) -> Checkpoint:
    checkpoint = Checkpoint().json("config.json", {}, age).put("model.safetensors", age=age)
    return checkpoint.put("training_args.bin", b"x", age).put("optimizer.pt", b"x", age).put("rng_state.pth", b"x", age)


def test_a_trainers_checkpoint_waits_for_its_state() -> None:
    assert trainer().assess("checkpoint-10", later=100).waiting_for == "trainer_state.json"
    half = trainer().put("trainer_state.json", b'{"epoch": ')
    assert half.assess("checkpoint-10").waiting_for == "trainer_state.json"
    verdict = trainer().json("trainer_state.json", {"epoch": 1}, age=0.5).assess("checkpoint-10")
    assert (verdict.complete, verdict.strength, verdict.rule) == (True, "good", "trainer")
    many = trainer().put("rng_state_3.pth", b"x").json("trainer_state.json", {}, age=0.5).assess("checkpoint-10")
    assert (many.complete, many.strength) == (False, "weak")  # other ranks may lag
    stale = trainer().json("trainer_state.json", {}, age=100).assess("checkpoint-10")
    assert (stale.complete, stale.strength) == (False, "weak")  # written over an older one
    assert Checkpoint().put("model.safetensors").put("training_args.bin", b"x").assess("final", later=5).complete


def test_a_distributed_checkpoint_waits_for_its_metadata() -> None:
    checkpoint = Checkpoint().put("a/__0_0.distcp", b"x").put("a/__1_0.distcp", b"x")
    assert checkpoint.assess(later=1000).waiting_for == "a/.metadata"
    checkpoint.put("a/.metadata.tmp", b"x", age=0.5)
    assert not checkpoint.assess(later=10).complete
    del checkpoint.content[b"a/.metadata.tmp"]
    verdict = checkpoint.put("a/.metadata", b"x", age=0.2).assess()
    assert (verdict.complete, verdict.strength) == (True, "strong")
    over = checkpoint.put("a/.metadata", b"x", age=100).assess()  # the old one, while the new parts are written
    assert (over.complete, over.strength) == (False, "weak")
    assert over.waiting_for == "a/.metadata to be written again" and over.doubt
    assert not checkpoint.assess(later=GIVE_UP - 2).complete
    assert checkpoint.assess(later=GIVE_UP).complete  # or a copy that began with it


def test_a_folder_without_a_marker_needs_quiet() -> None:
    checkpoint = Checkpoint().json("config.json", {}, age=1).put("model.safetensors", age=1)
    verdict = checkpoint.assess()
    assert (verdict.complete, verdict.strength, verdict.rule) == (False, "weak", "folder")
    assert checkpoint.assess(later=5).complete
    assert not checkpoint.put(".tmpAbC", WEIGHTS[:60], age=1).assess(later=5).complete


def test_files_with_temporary_names_are_never_a_checkpoint() -> None:
    checkpoint = Checkpoint().put(".tmpAbC")
    assert not checkpoint.assess(later=10 * GIVE_UP).complete
    assert not Checkpoint().assess(later=10).complete


def test_the_wait_can_be_set() -> None:
    facts = {b"x.bin": FileFacts(1, Layout("opaque"), True, 1.0)}
    assert not assess(facts, lambda _: None).complete
    assert assess(facts, lambda _: None, quiet={"strong": 0, "good": 0, "weak": 0.5}).complete


# What the real writers leave behind


def facts_of(folder: Path) -> dict[bytes, FileFacts]:
    facts = {}
    for path in folder.rglob("*"):
        content = path.read_bytes()
        layout = parser_for(str(path)).update(lambda o, n, c=content: c[o : o + n], len(content), False)
        facts[str(path.relative_to(folder)).encode()] = FileFacts(len(content), layout, True, 1.0)
    return facts


@pytest.fixture
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=3, vocab_size=99)
    )


def test_save_pretrained_in_shards_is_complete_only_with_all_its_files(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    facts = facts_of(tmp_path)
    read: Callable[[bytes], bytes] = lambda path: (tmp_path / path.decode()).read_bytes()  # noqa: E731
    assert list(group(facts)) == [b""]
    verdict = assess(facts, read)
    assert (verdict.complete, verdict.rule, verdict.strength) == (True, "sharded", "good")
    names = {v.name for f in facts.values() if f.layout for s in f.layout.storages for v in s.views}
    assert names >= set(model.state_dict()) - {"lm_head.weight"}
    for missing in facts:
        if missing.endswith((b".safetensors", b".index.json")):
            assert not assess({path: fact for path, fact in facts.items() if path != missing}, read).complete


def test_save_pretrained_over_an_older_save_is_weak_while_the_old_index_lies_there(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    model.save_pretrained(tmp_path)  # one file now; the index of the shards stays
    facts = facts_of(tmp_path)
    read: Callable[[bytes], bytes] = lambda path: (tmp_path / path.decode()).read_bytes()  # noqa: E731
    verdict = assess(facts, read)
    assert verdict.strength == "weak" and not verdict.complete
    quiet = {path: FileFacts(f.size, f.layout, True, 6.0) for path, f in facts.items()}
    assert assess(quiet, read).complete


def test_torch_distributed_checkpoints_are_strong(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"w": torch.ones(4)}, checkpoint_id=str(tmp_path / "step_1"))
    facts = facts_of(tmp_path / "step_1")
    assert set(facts) == {b".metadata", b"__0_0.distcp"}
    verdict = assess(facts, lambda _: None)
    assert (verdict.complete, verdict.strength, verdict.rule) == (True, "strong", "distributed checkpoint")
    del facts[b".metadata"]
    assert not assess(facts, lambda _: None).complete
