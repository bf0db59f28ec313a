"""Random numbers from counters: pure, uniform, and unrelated between keys and counters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.ops.reference.random import fold, start, uniform

CPU = torch.device("cpu")
KEY = 12345678901234567


def test_the_numbers_never_change():
    """Literal values: if these differ, a resumed run drops other units than it would have."""
    state = fold(fold(start(KEY, CPU), torch.tensor([0, 1, 2**40])), torch.arange(2))
    assert state.tolist() == [[1864649847, 2873673528], [2005439716, 716099833], [2036127517, 1121653766]]
    assert torch.equal(uniform(KEY, torch.arange(3)), uniform(KEY, torch.arange(3)))


@given(
    key=st.integers(0, 2**63 - 1),
    first=st.integers(0, 2**61),
    starts=st.tuples(st.integers(0, 5), st.integers(0, 4)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_part_of_the_counters_gives_a_part_of_the_numbers(key, first, starts, sizes):
    samples, positions = torch.arange(first, first + 9), torch.arange(8)
    whole = uniform(key, samples, positions)
    rows, columns = (slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    assert torch.equal(uniform(key, samples[rows], positions[columns]), whole[rows, columns])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(key, samples[order], positions), whole[order])


@pytest.mark.parametrize("key", [0, 1, KEY, 2**63 - 1])
def test_uniform_in_the_unit_interval(key):
    drawn = uniform(key, torch.arange(300), torch.arange(1000)).double()
    assert drawn.shape == (300, 1000)
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=2e-3)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=1e-3)
    counts = torch.histc(drawn, 64, 0.0, 1.0)
    mean = drawn.numel() / 64
    assert ((counts - mean).square() / mean).sum().item() < 120  # chi-square, 63 degrees of freedom: p about 1e-5


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1].abs())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("the next key", lambda key, a, b: (key + 1, a, b)),
        ("a key that differs in its high half", lambda key, a, b: (key + 2**40, a, b)),
        ("the next samples", lambda key, a, b: (key, a + 1, b)),
        ("the next positions", lambda key, a, b: (key, a, b + 1)),
        ("samples far on", lambda key, a, b: (key, a + 2**40, b)),
        ("counters in the other order", lambda key, a, b: (key, b, a)),
    ],
)
def test_neighbours_are_unrelated(name, change):
    """300 x 300 numbers each: correlation of independent ones is below 0.013 but once in ten thousand times."""
    counters = torch.arange(1000, 1300), torch.arange(300)
    assert correlation(uniform(KEY, *counters), uniform(*change(KEY, *counters))) < 0.013, name


def test_samples_and_positions_are_no_pair_without_order():
    """The diagonal is its own mirror image: 300 of 90,000 numbers."""
    square = uniform(KEY, torch.arange(300), torch.arange(300))
    assert correlation(square, square.t()) < 0.013 + 1 / 300


def test_numbers_are_multiples_that_every_wider_type_holds():
    drawn = uniform(KEY, torch.arange(1000))
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn.double() * 2**24, (drawn.double() * 2**24).round())
