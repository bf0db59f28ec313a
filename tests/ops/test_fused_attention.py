"""The kernels of attention against its definition, forward and backward: every bias and mask, alone and together."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from ops.libraries import DTYPES, INTERPRETED, LIBRARIES, ROUNDING, far, load
from torch import Tensor

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.fused import attention as fused
from megaswitch.ops.reference.attention import attention
from megaswitch.ops.reference.random import fold, start
from megaswitch.utils.precision import at_least_float32

SHAPES = {  # B, Q, M, H, K
    "small": (2, 5, 7, 3, 4),
    "odd": (1, 61, 61, 2, 33),
    "more keys": (1, 50, 211, 2, 64),
    "one query": (2, 1, 9, 2, 8),
}
FEW = [("odd", "", 0.3), ("more keys", "distances real segments", 0.0), ("odd", "distances causal", 0.0)]
KINDS = ["", "distances", "distances causal", "real", "segments", "distances real segments", "causal segments"]
CASES = FEW if INTERPRETED else [(shape, kind, rate) for shape in SHAPES for kind in KINDS for rate in (0.0, 0.3)]


def case(shape: str, kind: str, dtype: torch.dtype, rate: float) -> tuple[list[Tensor], Bias, Drop | None, Tensor]:
    """Queries, keys, values (and distances), what else attention is given, and weights of what comes out. The first
    sequence has no real key, and some queries are of a segment of which there is no key."""
    batch, queries, keys, heads, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def numbers(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = (numbers(batch, n, heads, width).requires_grad_() for n in (queries, keys, keys))
    distances = numbers(heads, queries + keys - 1, dtype=at_least_float32(dtype)).requires_grad_()
    real = torch.rand(batch, keys, generator=generator) < 0.7
    real[0] = False
    segments = tuple(torch.randint(1, most, (batch, n), generator=generator) for most, n in ((4, queries), (3, keys)))
    bias = Bias(
        distances if "distances" in kind else None,
        "causal" in kind,
        real if "real" in kind else None,
        segments if "segments" in kind else None,
    )
    states = start(3, torch.device("cpu"))
    for n in (batch, heads, queries):
        states = fold(states, torch.arange(n))
    leaves = [q, k, v, distances] if "distances" in kind else [q, k, v]
    return leaves, bias, Drop(rate, states) if rate else None, numbers(batch, queries, heads, width)


def run(function, leaves, bias, dropped, weight) -> list[Tensor]:
    """What comes out, and the gradients."""
    out = function(*leaves[:3], bias, dropped)
    return [out, *torch.autograd.grad(out, leaves, weight)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "kind", "rate"), CASES)
def test_it_is_the_definition(library, shape, kind, dtype, rate):
    given = case(shape, kind, dtype, rate)
    kernels = load(library)
    for a, b in zip(run(attention, *given), run(partial(fused.attention, kernels), *given), strict=True):
        assert far(a, b) < 1.5 * ROUNDING[dtype], "roundings of three products and an exponential, one after the other"


def from_exact(function, leaves: list[Tensor], bias: Bias, weight: Tensor) -> list[float]:
    """Root mean squares of the distances to the definition in float64, by those of its numbers."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    bias_64 = replace(bias, by_distance_HR=exact[3])
    expected = [x.detach() for x in run(attention, exact, bias_64, None, weight.double())]
    found = [x.detach().double() for x in run(function, leaves, bias, None, weight)]
    return [float((a - b).norm() / a.norm()) for a, b in zip(expected, found, strict=True)]


def test_bfloat16_is_as_near_to_float64_as_the_definition_is():
    """Gradients of logits are rounded on their way into products, which autograd of the definition does not do: a
    twentieth more of the queries' gradients, by what this gives."""
    leaves, bias, _, weight = case("more keys", "distances", torch.bfloat16, 0.0)
    theirs = from_exact(attention, leaves, bias, weight)
    ours = from_exact(partial(fused.attention, cpp_kernels()), leaves, bias, weight)
    assert all(mine < 1.1 * its for mine, its in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("library", LIBRARIES)
def test_logits_far_apart(library):
    """Exponentials of numbers that no float32 holds, and of very small ones."""
    leaves, bias, _, weight = case("more keys", "distances", torch.float32, 0.0)
    leaves = [leaves[0].detach().mul(30).requires_grad_(), *leaves[1:]]
    kernels = load(library)
    # logits of a thousand are rounded to 1e-4; one key has nearly all the weight, and what Triton's backward takes off
    # its gradient is a sum over the head's width, the definition's one over the keys
    allowed = 1e-3 if library == "triton" else 1e-4
    for a, b in zip(
        run(attention, leaves, bias, None, weight),
        run(partial(fused.attention, kernels), leaves, bias, None, weight),
        strict=True,
    ):
        assert far(a, b) < allowed


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_not_a_number_shows(library):
    leaves, bias, _, _ = case("small", "distances", torch.float32, 0.0)
    q = leaves[0].detach().clone()
    q[1, 2, 0, 1] = float("nan")
    out = fused.attention(load(library), q, *leaves[1:3], bias, None)
    assert out[1, 2, 0].isnan().all() and out.isnan().sum() == out.shape[-1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_views_that_are_not_contiguous(library):
    leaves, bias, _, weight = case("small", "distances", torch.float64, 0.0)
    views = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in leaves[:3]]
    assert not views[0].is_contiguous()
    kernels = load(library)
    found = run(partial(fused.attention, kernels), [*views, leaves[3]], bias, None, weight.expand_as(weight))
    for a, b in zip(run(attention, leaves, bias, None, weight), found, strict=True):
        assert far(a, b) < ROUNDING[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(world, dtype):
    """In a child, since a process that has used two threads cannot be forked."""

    def work():
        given = case("more keys", "distances real", dtype, 0.1)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(partial(fused.attention, cpp_kernels()), *given))
        return all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more, strict=True))

    assert world(1, work) == [True]


def test_one_key_alone_leaves_no_gradient():
    """Exactly none: optimizers that divide by its size would make something of the rounding of 0."""
    leaves, bias, _, weight = case("odd", "distances causal", torch.float64, 0.0)
    _, dq, *_ = run(partial(fused.attention, cpp_kernels()), leaves, bias, None, weight)
    assert dq[:, 0].count_nonzero() == 0 and dq[:, 1].count_nonzero() == dq[:, 1].numel()


def test_what_stays_for_the_backward_is_no_weight():
    """Nothing of queries x keys, by the tensors that autograd keeps."""
    leaves, bias, dropped, _ = case("more keys", "distances real", torch.float32, 0.1)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        fused.attention(cpp_kernels(), *leaves[:3], bias, dropped)
    assert max(sizes) == leaves[1].numel() > 0
