"""Retention keeps what it is told to, and whatever that needs; at no moment is a kept archive unreadable."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arzstream.daemon.inventory import Held, Inventory
from arzstream.daemon.retain import DAY, Plan, Rules, plan


def held(number: int, *parents: int, size: int = 30, ours: bool = True, **fields: object) -> Held:
    """The archive of ``step-<number>``, of 100 bytes in a run."""
    one = Held(
        f"run/step-{number}.arz", size if parents else max(size, 65), 100, b"%d" % number,
        tuple(b"%d" % parent for parent in parents), "run" if ours else "", (0, number, 0, 0),
        b"run/step-%d" % number if ours else b"", float(number), ours,
    )  # fmt: skip
    return dataclasses.replace(one, **fields)  # type: ignore[arg-type]


def inventory(*archives: Held) -> Inventory:
    return Inventory({archive.name: archive for archive in archives})


def chain(count: int) -> Inventory:
    return inventory(*(held(n, *[p for p in (n - 1, n - 2) if p >= 0]) for n in range(count)))


def steps(names: object) -> list[int]:
    return sorted(int(name.split("-")[1].split(".")[0]) for name in names)  # type: ignore[attr-defined]


def test_without_rules_everything_stays() -> None:
    found = plan(chain(5), Rules(), now=5.0)
    assert steps(found.keep) == list(range(5)) and not found.remove


def test_whatever_one_rule_keeps_stays_and_the_newest_always() -> None:
    alone = inventory(*(held(n) for n in range(10)), held(10, 9))

    def kept(**rules: object) -> list[int]:
        return steps(plan(alone, Rules(**rules), now=5 + DAY).keep)  # type: ignore[arg-type]

    assert kept(last=3) == [8, 9, 10]
    assert kept(every=4) == [0, 4, 8, 10]
    assert kept(last=1, every=5) == [0, 5, 10]
    assert kept(days=1.0) == [6, 7, 8, 9, 10]
    assert kept(full=True) == list(range(11))
    assert kept(days=1e-9) == [10]


def test_what_a_kept_archive_needs_stays_and_says_why() -> None:
    found = plan(chain(6), Rules(last=1))
    assert steps(found.keep) == [5] and steps(found.needed) == [0, 1, 2, 3, 4] and found.remove == []
    assert found.needed["run/step-0.arz"].startswith("run/step-")
    two = inventory(*chain(3).held.values(), held(3), held(4, 3), held(5, 4, 3))
    found = plan(two, Rules(last=2))
    assert steps(found.needed) == [3] and [steps([name]) for name in found.remove] == [[2], [1], [0]]


def test_a_kept_archive_is_coded_anew_where_that_frees_more_than_it_costs() -> None:
    found = plan(chain(9), Rules(last=2), rebase=True)
    assert [(step.name, step.parent) for step in found.rebase] == [
        ("run/step-7.arz", ""),
        ("run/step-8.arz", "run/step-7.arz"),
    ]
    assert steps(found.remove) == list(range(7)) and found.frees == 65 + 6 * 30 and found.costs == 35 + 3
    few = plan(chain(3), Rules(last=2), rebase=True)  # 65 + 33 for what now takes 65 + 30 + 30
    assert steps(few.remove) == [0] and few.frees == 65
    branches = inventory(held(0), held(1, 0), held(2, 0))  # 35 more for each of them, and 65 less
    assert not plan(branches, Rules(last=2), rebase=True).rebase


def test_chains_that_are_coded_anew_are_bounded() -> None:
    found = plan(chain(12), Rules(every=4), rebase=True, max_chain=1)
    assert [step.parent for step in found.rebase] == ["run/step-0.arz", "", "run/step-8.arz"]


def test_archives_of_others_are_never_removed_nor_what_they_need() -> None:
    strange = held(9, 1, 0, ours=False, name="run/mine.arz")
    found = plan(inventory(*chain(4).held.values(), strange), Rules(last=1), rebase=True)
    assert "run/mine.arz" in found.keep and {"run/step-0.arz", "run/step-1.arz"} <= found.needed.keys()
    assert not found.rebase


def test_what_is_in_use_stays() -> None:
    found = plan(chain(4), Rules(last=1), in_use=[b"2"], rebase=True)
    assert {"run/step-2.arz", "run/step-1.arz", "run/step-0.arz"} <= found.needed.keys()


def test_a_folder_with_an_archive_that_cannot_be_read_is_left_alone() -> None:
    alone = inventory(*(held(n) for n in range(4)), *(held(n, name=f"b/step-{n}.arz", run="b") for n in (5, 6)))
    alone.unreadable["run/bad.arz"] = "run/bad.arz: is cut short"
    found = plan(alone, Rules(last=1))
    assert found.remove == ["b/step-5.arz"] and found.left_alone == {"run": "run/bad.arz: is cut short"}


def test_steps_and_times_that_disagree_keep_both() -> None:
    old = [held(n) for n in (80, 90, 100)]
    new = [dataclasses.replace(held(n), published=1000.0 + n) for n in (10, 20)]
    assert steps(plan(inventory(*old, *new), Rules(last=2)).keep) == [10, 20, 90, 100]


def test_a_chain_that_misses_something_is_not_coded_anew() -> None:
    whole = chain(9)
    del whole.held["run/step-3.arz"]
    found = plan(Inventory(whole.held), Rules(last=1), rebase=True)
    assert not found.rebase


@st.composite
def forests(draw: st.DrawFn) -> Inventory:
    """Archives of two folders, with any parents among those before them, some of them not ours, some missing."""
    archives: dict[str, Held] = {}
    for number in range(draw(st.integers(1, 12))):
        behind = [int(other.content) for other in archives.values()]
        parents = draw(st.lists(st.sampled_from(behind), max_size=2, unique=True)) if behind else []
        size, folder = draw(st.integers(1, 80)), draw(st.sampled_from("ab"))
        ours = draw(st.booleans()) or draw(st.booleans())
        one = held(number, *parents, size=size, ours=ours, name=f"{folder}/step-{number}.arz")
        archives[one.name] = dataclasses.replace(one, run=folder if ours else "", published=draw(st.floats(0, 100)))
    gone = draw(st.sets(st.sampled_from(sorted(archives)), max_size=2))
    return Inventory({name: one for name, one in archives.items() if name not in gone})


def readable(archives: Inventory) -> set[str]:
    return {name for name, one in archives.held.items() if archives.whole(one)}


def carried_out(before: Inventory, found: Plan) -> Inventory:
    """What is there when the archives of ``found`` are coded anew, with the parents that a rebase gives them."""
    after = dict(before.held)
    for step in found.rebase:
        parent = after[step.parent] if step.parent else None
        contents = (parent.content, *parent.parents[:1]) if parent is not None else ()
        after[step.name] = dataclasses.replace(after[step.name], parents=contents)
    return Inventory(after)


@settings(max_examples=150, deadline=None)
@given(forests(), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 3), st.randoms())
def test_no_kept_archive_becomes_unreadable_at_any_moment(
    before: Inventory, last: int, every: int, full: bool, rebase: bool, max_chain: int, chance: random.Random
) -> None:
    rules = Rules(last=last, every=every, full=full)
    found = plan(before, rules, rebase=rebase, max_chain=max_chain, now=0.0)
    assert before.held.keys() == found.keep.keys() | found.needed.keys() | set(found.remove)
    assert not found.keep.keys() & set(found.remove) and len(set(found.remove)) == len(found.remove)
    could_be_read = readable(before)
    moment = carried_out(before, dataclasses.replace(found, rebase=found.rebase[: chance.randint(0, 9)]))
    assert could_be_read <= readable(moment)
    assert all(moment.depths[step.name] <= max_chain for step in found.rebase if step.parent)
    again = plan(moment, rules, now=0.0)  # as prune looks again before it removes anything
    for name in again.remove[: chance.randint(0, 12)]:
        assert moment.held[name].ours
        moment = Inventory({other: one for other, one in moment.held.items() if other != name})
        assert could_be_read & moment.held.keys() <= readable(moment)
    assert found.keep.keys() & could_be_read <= readable(moment)
    if len(found.rebase) == 0:
        assert set(found.remove) == set(plan(before, rules, now=0.0).remove)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_depths_count_archives_behind(count: int) -> None:
    assert chain(count).depths == {f"run/step-{n}.arz": n for n in range(count)}
