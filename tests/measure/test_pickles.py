"""What pickles may cost: hostile ones little, real ones as much as they need."""

from __future__ import annotations

import pytest

from tools.measure import pickles

CALM = 2.0
"""How many times as long it may take on a machine that is busy."""


@pytest.mark.alone
@pytest.mark.parametrize("name", ["lists", "dicts", "None", "long texts", "calls", "memo", "paths"])
def test_four_million_opcodes_take_two_seconds_and_100_mb_at_most(name: str) -> None:
    seconds, memory, _ = pickles.measured(pickles.HOSTILE[name]())
    assert seconds <= 2 * CALM and memory <= 100e6


def test_a_checkpoint_of_ten_thousand_parameters_with_adam_s_state_is_followed() -> None:
    _, _, work = pickles.measured(pickles.with_adam(10_000))
    assert 0 < work < pickles.MAX_WORK * 3 // 4
