"""The kernels of routing against their definition: the same experts, and numbers within roundings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.libraries import LIBRARIES, ROUNDING, far, load, numbers

from megaswitch.ops.fused import router as fused
from megaswitch.ops.fused import routing as fused_routing
from megaswitch.ops.reference import router as reference
from megaswitch.ops.reference import routing
from megaswitch.ops.reference.router import Jitter, Scored
from megaswitch.utils.precision import at_least_float32

BF16 = torch.bfloat16

SHAPES = [(0, 4, 2), (1, 1, 1), (5, 3, 2), (140, 8, 3), (200, 37, 1), (70, 2048, 70)]
"""Tokens, experts, groups."""


def places(tokens, groups, seed=0):
    """Runs of tokens of one group, the last group first and the first empty where there are several; half are real."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(min(1, groups - 1), groups, (tokens,), generator=generator).sort(descending=True).values
    return group, torch.rand(tokens, generator=generator) < 0.5, groups


def both(kernels, logits, *rest):
    scored = Scored(logits)
    return reference.route(scored, None, *rest), fused.route(kernels, scored, None, *rest)


def same_queues(expected, found):
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected.queued, found.queued, strict=True))


def losses(routed, weights):
    """A scalar that every number with a gradient has a part in."""
    with_gradient = (routed.gate_TK, routed.log_z_T, routed.probs_GE)
    return sum((out * weight).sum() for out, weight in zip(with_gradient, weights, strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("choices", [1, 2, 3, 8])
def test_route(library, dtype, shape, noisy, choices):
    kernels, (tokens, experts, groups) = load(library), shape
    choices = min(choices, experts)
    leaf = (numbers(tokens, experts, seed=0, dtype=dtype) * 4.0).requires_grad_()
    noise = numbers(tokens, experts, seed=1, dtype=torch.float32) * 3.0 if noisy else None
    where = places(tokens, groups)
    weights = [numbers(*s, seed=2, dtype=dtype) for s in ((tokens, choices), (tokens,), (groups, experts))]
    expected = reference.route(Scored(leaf), noise, *where, True, choices)
    with torch.no_grad():
        found = fused.route(kernels, Scored(leaf), noise, *where, True, choices)
    assert torch.equal(expected.index_TK, found.index_TK)
    same_queues(expected, found)
    pairs = list(zip(expected[2:-1], found[2:-1], strict=True))
    given = (leaf.detach(), found.log_z_T, found.index_TK, *where[:2], *weights)
    gradient = torch.autograd.grad(losses(expected, weights), leaf)[0]
    pairs += [(gradient, reference.route_gradient(*given)), (gradient, fused.route_gradient(kernels, *given))]
    if tokens:
        for a, b in pairs:
            assert far(a, b) < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_lowest_of_equals(library):
    kernels = load(library)
    logits = torch.zeros(3, 40)
    logits[1, [7, 30]], logits[2, 39] = 1.0, 1.0
    found = fused.route(kernels, Scored(logits), None, *places(3, 1), False, 3)
    assert found.index_TK.tolist() == [[0, 1, 2], [7, 30, 0], [39, 0, 1]]
    assert torch.equal(found.index_TK, reference.route(Scored(logits), None, *places(3, 1), False, 3).index_TK)
    assert found.queued is None, "of groups that are not whole"


@pytest.mark.parametrize("library", LIBRARIES)
def test_experts_without_a_chance_are_chosen_last_and_once(library):
    kernels, where, none = load(library), places(2, 1), float("-inf")
    logits = torch.tensor([[none, 2.0, none, 1e4], [none, none, none, none]])
    found = fused.route(kernels, Scored(logits), None, *where, True, 4)
    assert found.index_TK.tolist() == [[3, 1, 0, 2], [0, 1, 2, 3]]


def test_more_choices_than_experts_are_refused():
    with pytest.raises(RuntimeError, match="5 choices of 4 experts"):
        fused.route(load("cpp"), Scored(torch.zeros(2, 4)), None, *places(2, 1), True, 5)


OF_TOKENS = [(1, 1, 1), (5, 3, 2), (70, 33, 8), (130, 48, 37), (20, 24, 150), (64, 64, 64), (66, 128, 257)]
"""Tokens, inputs, experts."""
TYPES = [(torch.float64, torch.float64), (torch.float32, torch.float32), (BF16, torch.float32), (BF16, BF16)]
"""Of tokens and of the matrix, which is the product's."""


def matrix_and_jitter(shape, dtype, size, transposed):
    tokens, width, experts = shape
    weight = numbers(experts, width, seed=1, dtype=dtype).t() / width**0.5
    states = torch.randint(2**32, (tokens,), generator=torch.Generator().manual_seed(2))
    return weight if transposed else weight.contiguous(), None if size is None else Jitter(states, size)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", OF_TOKENS)
@pytest.mark.parametrize("size", [None, 0.1])
@pytest.mark.parametrize("transposed", [False, True])
def test_of_tokens(library, dtype, shape, size, transposed):
    """Logits are the definition's but for roundings, and the rest is what it says of these logits."""
    kernels, (tokens, width, experts), (kind, of_matrix) = load(library), shape, dtype
    x = numbers(tokens, width, seed=0, dtype=kind)
    scored = Scored(x, *matrix_and_jitter(shape, of_matrix, size, transposed))
    where, choices = places(tokens, 2), min(2, experts)
    found = fused.route(kernels, scored, None, *where, True, choices)
    by_definition = reference.route(scored, None, *where, True, choices)
    assert far(by_definition.logits_TE, found.logits_TE) < 2 * ROUNDING[of_matrix]
    assert found.logits_TE.equal(found.logits_TE.to(of_matrix).to(found.logits_TE.dtype)), "rounded to the type"
    expected = reference.route(Scored(found.logits_TE), None, *where, True, choices)
    assert torch.equal(expected.index_TK, found.index_TK)
    same_queues(expected, found)
    for a, b in zip(expected[2:-1], found[2:-1], strict=True):
        assert far(a, b) < 2 * ROUNDING[at_least_float32(of_matrix)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", OF_TOKENS)
@pytest.mark.parametrize("size", [None, 0.1])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradient_of_tokens(library, dtype, shape, size, transposed):
    kernels, (tokens, _, experts), (kind, of_matrix) = load(library), shape, dtype
    grad = numbers(tokens, experts, seed=0, dtype=of_matrix)
    given = (grad, *matrix_and_jitter(shape, of_matrix, size, transposed), kind)
    found = fused.tokens_gradient(kernels, *given)
    assert found.dtype == kind
    assert far(reference.tokens_gradient(*given), found) < 2 * ROUNDING[kind]


def test_a_token_is_scored_alike_whatever_comes_with_it():
    """So that tensor-parallel ranks, which have parts of a sequence, choose as one process does."""
    kernels = load("cpp")
    x, weight = numbers(150, 40, seed=0, dtype=torch.float32), numbers(40, 70, seed=1, dtype=torch.float32)
    whole = fused.route(kernels, Scored(x, weight), None, *places(150, 1), True, 1).logits_TE
    for first, last in ((0, 1), (7, 8), (3, 60), (75, 150)):
        part = fused.route(kernels, Scored(x[first:last], weight), None, *places(last - first, 1), True, 1)
        assert torch.equal(part.logits_TE, whole[first:last])


def test_tokens_that_do_not_fit_the_matrix_are_refused():
    with pytest.raises(RuntimeError, match="a token has 3 numbers and the matrix 4"):
        fused.route(load("cpp"), Scored(torch.zeros(2, 3), torch.zeros(4, 5)), None, *places(2, 1), True, 1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_logits_far_apart_or_without_a_chance(library):
    kernels, where = load(library), places(2, 1)
    logits = torch.tensor([[1e4, -1e4, 0.0], [float("-inf"), 2.0, 2.0]])
    expected, found = both(kernels, logits, *where, True, 2)
    same_queues(expected, found)
    for a, b in zip(expected[:-1], found[:-1], strict=True):
        assert torch.equal(a, b) or far(a, b) < ROUNDING[torch.float32]


@pytest.mark.parametrize("library", LIBRARIES)
def test_narrow_and_strided_logits(library):
    kernels, where = load(library), places(6, 2)
    narrow = numbers(6, 5, seed=0, dtype=torch.bfloat16)
    expected, found = both(kernels, narrow, *where, True, 2)
    assert all(torch.equal(a, b) for a, b in zip(expected[:-1], found[:-1], strict=True))
    strided = numbers(5, 6, seed=0, dtype=torch.float64).t()
    expected, found = both(kernels, strided, *where, True, 2)
    same_queues(expected, found)
    assert all(far(a, b) < ROUNDING[torch.float64] for a, b in zip(expected[:-1], found[:-1], strict=True))


@st.composite
def choices(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Experts, or -1 for none, of each group's tokens [G, S, K]; and the number of experts."""
    experts, shape = draw(st.integers(1, 5)), [draw(st.integers(0, n)) for n in (3, 12, 2)]
    seed = draw(st.integers(0, 2**31))
    return torch.randint(-1, experts, shape, generator=torch.Generator().manual_seed(seed)), experts


@pytest.mark.parametrize("library", LIBRARIES)
@given(case=choices())
def test_integers_are_equal(library, case):
    kernels, (index_GSK, experts) = load(library), case
    counts = fused_routing.count_choices(kernels, index_GSK, experts)
    assert torch.equal(routing.count_choices(index_GSK, experts), counts)
    for index_GS in index_GSK.unbind(2):  # not contiguous
        expected, found = routing.queue(index_GS, experts), fused_routing.queue(kernels, index_GS, experts)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True))
        lanes = torch.where(index_GS < 0, experts, index_GS).flatten()
        expected = routing.lane_order(lanes, experts + 1)
        found = fused_routing.lane_order(kernels, lanes, experts + 1)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_expert_that_there_is_not_is_refused(library):
    kernels = load(library)
    with pytest.raises(IndexError, match="expert 4 of 4"):
        fused_routing.queue(kernels, torch.tensor([[0, 4]]), 4)
