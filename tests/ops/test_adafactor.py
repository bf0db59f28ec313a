"""Adafactor's passes over parts of matrices: by kernels as by their definition, and parts as the whole."""

import pytest
import torch
from ops.libraries import LIBRARIES, each, far, load, numbers

from megaswitch.ops.fused.adafactor import passes
from megaswitch.ops.reference.adafactor import PASSES, Passes, Step

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
TYPES = [(F64, F64), (F32, F32), (BF16, F32), (BF16, F64)]
"""Of gradients and of weights."""
ROUNDING = {F64: 1e-13, F32: 3e-6}
SHAPES = [(1, 1, 1), (1, 5, 7), (3, 70, 33), (2, 130, 2100), (40, 6, 24)]
for_all_matrices = each(library=LIBRARIES, types=TYPES, shape=SHAPES, ids=str)
STEP = Step(decay=0.3, lr=0.01, clip=0.7, scaled=True)


def positive(*shape, seed, dtype):
    return numbers(*shape, seed=seed, dtype=dtype).abs_() + 0.1


def matrices(shape, grad_dtype, dtype):
    """Weights, means by row and by column, gradient."""
    b, r, c = shape
    lines = positive(b, r, seed=1, dtype=dtype), positive(b, c, seed=2, dtype=dtype)
    return numbers(*shape, seed=0, dtype=dtype), *lines, numbers(*shape, seed=3, dtype=grad_dtype)


def by_passes(p: Passes, shape, types, *, units: bool) -> list[torch.Tensor]:
    """Everything that the passes over matrices change."""
    weights, rows, cols, grad = matrices(shape, *types)
    sums = numbers(2, shape[0] if units else 1, seed=4, dtype=types[1])
    p.add_squares_(sums, weights, grad, rows, cols)
    scale = numbers(len(sums[0]), seed=5, dtype=types[1])
    p.apply_(weights, grad, rows, cols, scale)
    p.add_mean_squares_(rows, cols, grad, 3 * shape[2], 2 * shape[1])
    return [weights, rows, cols, sums]


def by_update(p: Passes, shape, types, *, scaled: bool) -> list[torch.Tensor]:
    weights, rows, cols, grad = matrices(shape, *types)
    p.update_(weights, rows, cols, grad, Step(STEP.decay, STEP.lr, STEP.clip, scaled))
    return [weights, rows, cols]


def by_moments(p: Passes, size, types) -> list[torch.Tensor]:
    weights, grad = numbers(size, seed=0, dtype=types[1]), numbers(size, seed=1, dtype=types[0])
    second, sums = positive(size, seed=2, dtype=types[1]), numbers(2, 3, seed=3, dtype=types[1])
    p.add_moments_(second, sums[:, 1:2], weights, grad, 0.6)
    p.apply_moments_(weights, grad, second, sums[0, 1:2])
    return [weights, second, sums]


def assert_same(expected, found, dtype):
    for a, b in zip(expected, found, strict=True):
        assert far(a, b) < ROUNDING[dtype]


@for_all_matrices
@pytest.mark.parametrize("units", [True, False], ids=["each", "together"])
def test_passes_over_matrices(library, types, shape, units):
    ours = by_passes(passes(load(library)), shape, types, units=units)
    assert_same(by_passes(PASSES, shape, types, units=units), ours, types[1])


@for_all_matrices
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "unscaled"])
def test_whole_updates(library, types, shape, scaled):
    ours = by_update(passes(load(library)), shape, types, scaled=scaled)
    assert_same(by_update(PASSES, shape, types, scaled=scaled), ours, types[1])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("size", [1, 31, 70_001])
def test_tensors_that_are_not_factored(library, types, size):
    assert_same(by_moments(PASSES, size, types), by_moments(passes(load(library)), size, types), types[1])


@pytest.mark.parametrize("library", [*LIBRARIES, "reference"])
def test_parts_add_up_to_the_whole(library):
    """Means over whole rows and columns, however the matrices are cut."""
    p = PASSES if library == "reference" else passes(load(library))
    grad = numbers(2, 12, 20, seed=0, dtype=F64)
    whole, cut = ((torch.zeros(2, 12, dtype=F64), torch.zeros(2, 20, dtype=F64)) for _ in range(2))
    p.add_mean_squares_(*whole, grad, 20, 12)
    for r, c in ((slice(0, 5), slice(0, 20)), (slice(5, 12), slice(0, 7)), (slice(5, 12), slice(7, 20))):
        p.add_mean_squares_(cut[0][:, r], cut[1][:, c], grad[:, r, c], 20, 12)
    assert_same(whole, cut, F64)
    assert far(grad.square().mean(2), whole[0]) < 1e-13


@pytest.mark.parametrize("library", LIBRARIES)
def test_matrices_whose_columns_lie_apart(library):
    """Where experts are a factored dimension."""
    found = []
    for p in (PASSES, passes(load(library))):
        weights, grad = (numbers(4, 5, 6, seed=s, dtype=F64).movedim(0, 2) for s in (0, 1))
        rows, cols = positive(5, 6, seed=2, dtype=F64), positive(4, 5, seed=3, dtype=F64).movedim(0, 1)
        sums = torch.zeros(2, 1, dtype=F64)
        p.add_mean_squares_(rows, cols, grad, 4, 6)
        p.add_squares_(sums, weights, grad, rows, cols)
        p.apply_(weights, grad, rows, cols, sums[0])
        found.append([weights, rows, cols, sums])
    assert_same(*found, F64)


@pytest.mark.parametrize("shape", [(1, 300, 1000), (9, 64, 64)], ids=str)
def test_threads_change_no_bit(world, shape):
    """In a child, since a process that has used two threads cannot be forked."""

    def work():
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            p, types = passes(load("cpp")), (F32, F32)
            found.append(by_update(p, shape, types, scaled=True) + by_passes(p, shape, types, units=False))
        return all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    assert world(1, work) == [True]
