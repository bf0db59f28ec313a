"""Who holds up the others, from shares of time."""

from collections import Counter

import pytest

from megaswitch.train.pace import PHASES, shares, stragglers


def row(**busy):
    return [busy.get(phase, 0.0) for phase in PHASES]


def test_shares_leave_out_waiting():
    assert shares(Counter(step=30, waiting=60, data=10)) == row(step=0.3, data=0.1)
    assert all(share != share for share in shares(Counter(step=3))), "a few samples say nothing"


@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_one_that_is_not_waiting_is_named_with_its_phase(world):
    rows = [row(step=0.3) for _ in range(world)]
    assert stragglers(rows, 1.5) == {}
    assert stragglers([*rows[:-1], row(step=0.9)], 1.5) == {world - 1: "step"}
    assert stragglers([row(step=0.3, data=0.6), *rows[1:]], 1.5) == {0: "data"}
    assert stragglers([*rows[:-1], row(step=0.4)], 1.5) == {}


def test_nothing_is_said_without_samples():
    assert stragglers([row(step=0.3), row(step=float("nan"))], 1.5) == {}
