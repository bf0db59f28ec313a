"""Learning rates by step."""

import itertools

import pytest

from megaswitch.optim.config import OptimConfig
from megaswitch.optim.schedule import learning_rate


def rates(steps: list[int], total: int = 1000, **config) -> list[float]:
    return [learning_rate(OptimConfig(**config), step, total) for step in steps]


def test_rsqrt_is_flat_and_then_falls():
    assert rates([0, 9_999, 10_000, 40_000]) == pytest.approx([0.01, 0.01, 0.01, 0.005])
    assert rates([0, 1, 4], warmup_steps=0, lr=2.0) == [2.0, 2.0, 1.0]


def test_constant_ramps_up():
    found = rates([0, 4, 9, 10, 500], schedule="constant", warmup_steps=10, lr=1.0)
    assert found == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert rates([0], schedule="constant", warmup_steps=0, lr=0.3) == [0.3]


def test_cosine_ends_at_a_tenth():
    found = rates([5, 10, 55, 100, 5000], total=100, schedule="cosine", warmup_steps=10, lr=1.0)
    assert found == pytest.approx([0.6, 1.0, 0.55, 0.1, 0.1])
    assert rates([0, 1], total=0, schedule="cosine", warmup_steps=0, lr=1.0) == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("schedule", ["rsqrt", "constant", "cosine"])
def test_rates_never_rise_after_the_ramp(schedule):
    found = rates(list(range(20, 400)), total=300, schedule=schedule, warmup_steps=20)
    assert all(a >= b > 0 for a, b in itertools.pairwise(found))


def test_bases_by_optimizer_and_schedule():
    assert [OptimConfig(name=n).base_lr for n in ("adafactor", "adamw")] == [1.0, 0.1]
    assert [OptimConfig(name=n, schedule="cosine").base_lr for n in ("adafactor", "adamw")] == [0.01, 0.001]
    assert OptimConfig(lr=0.5).base_lr == 0.5
    assert OptimConfig(lr=0.0).base_lr == 0.0
