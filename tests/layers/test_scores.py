"""The router's pass over the tokens: its gradients, when the matrix's is computed, and what is kept."""

import pytest
import torch
from ops.libraries import numbers
from torch import nn

from megaswitch.layers.moe.choice import Places
from megaswitch.layers.moe.scores import Scores
from megaswitch.layers.weight_work import WeightWork
from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.fused.backend import fused_ops
from megaswitch.ops.ops import BY_DEFINITION
from megaswitch.ops.reference import router as reference
from megaswitch.ops.reference.router import Jitter, Scored

TOKENS, WIDTH, EXPERTS, CHOICES = 12, 6, 5, 2
PLACES = Places(torch.arange(3).repeat_interleave(4), torch.arange(TOKENS) % 5 > 0, 3)
WITH_GRADIENT = ("logits_TE", "gate_TK", "log_z_T", "probs_GE")


def backend(name):
    return BY_DEFINITION if name == "reference" else fused_ops("cpp", cpp_kernels())


def loss(routed, names):
    parts = [getattr(routed, name) for name in names]
    return sum((part * numbers(*part.shape, seed=i, dtype=part.dtype)).sum() for i, part in enumerate(parts))


def jitter(size):
    return None if size is None else Jitter(torch.arange(TOKENS) * 7919, size)


@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize("size", [None, 0.2])
@pytest.mark.parametrize("main_grad", [False, True])
@pytest.mark.parametrize("of", [WITH_GRADIENT, ("gate_TK",), ("log_z_T", "probs_GE"), ("logits_TE",)])
def test_gradients_are_those_of_the_definition(name, size, main_grad, of):
    """Whatever of the results there is a loss of; a main gradient gets the matrix's when its work is done."""
    x, weight = (numbers(*shape, seed=0, dtype=torch.float64) for shape in ((TOKENS, WIDTH), (WIDTH, EXPERTS)))
    twin_x, twin = x.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = reference.route(Scored(twin_x, twin, jitter(size)), None, *PLACES, CHOICES)
    loss(expected, of).backward()
    x, weight, work, ops = x.requires_grad_(), nn.Parameter(weight), WeightWork(), backend(name)
    if main_grad:
        weight.main_grad = torch.zeros_like(weight)
    found = Scores(x, PLACES, weight, torch.float64, jitter(size), work, ops).route(None, CHOICES)
    assert torch.equal(expected.index_TK, found.index_TK)
    assert not found.entropy_T.requires_grad
    loss(found, of).backward()
    todo = work.take()
    assert len(todo) == main_grad
    for part in todo:
        part()
    torch.testing.assert_close(x.grad, twin_x.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(weight.main_grad if main_grad else weight.grad, twin.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_logits_may_be_given(name):
    logits = numbers(TOKENS, EXPERTS, seed=0, dtype=torch.float64).requires_grad_()
    twin = logits.detach().requires_grad_()
    found = Scores(logits, PLACES, ops=backend(name)).route(None, CHOICES)
    loss(found, WITH_GRADIENT).backward()
    loss(reference.route(Scored(twin), None, *PLACES, CHOICES), WITH_GRADIENT).backward()
    torch.testing.assert_close(logits.grad, twin.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_of_the_tokens_nothing_wider_is_kept(name):
    """In bfloat16, with a router in float32: the tokens themselves, no copy in float32 or with jitter."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    x = numbers(TOKENS, WIDTH, seed=0, dtype=torch.bfloat16).requires_grad_()
    weight = nn.Parameter(numbers(WIDTH, EXPERTS, seed=1, dtype=torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = Scores(x, PLACES, weight, torch.float32, jitter(0.1), WeightWork(), backend(name))
        routed = scores.route(None, CHOICES)
    of_tokens = [tensor for tensor in kept if tensor.shape == x.shape]
    assert [tensor.data_ptr() for tensor in of_tokens] == [x.data_ptr()]
    assert routed.logits_TE.dtype == torch.float32
    routed.gate_TK.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
