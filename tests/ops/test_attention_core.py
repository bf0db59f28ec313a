"""The attention core against torch's scaled_dot_product_attention without its scale, and the masks it is given."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.reference.attention import attention
from megaswitch.ops.reference.random import fold, start, to_uniform

CPU = torch.device("cpu")


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / a.detach().abs().max())


def qkv(queries: int = 5, keys: int = 7) -> list[Tensor]:
    """[B, L, H, K] each, with gradients."""
    lengths = (queries, keys, keys)
    return [number(2, length, 3, 4, seed=i).requires_grad_() for i, length in enumerate(lengths)]


def torchs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).transpose(1, 2)


def dense(bias: Bias, queries: int, keys: int) -> Tensor:
    """What is added to the logits [B, H, Q, M], number by number."""
    batch, heads = 2, 3
    rows = []
    for b, h, q, m in itertools.product(range(batch), range(heads), range(queries), range(keys)):
        by_distance = bias.by_distance_HR
        number = torch.zeros((), dtype=torch.float64) if by_distance is None else by_distance[h, m - q + queries - 1]
        seen = bias.real_BM is None or bool(bias.real_BM[b, m])
        seen &= bias.segments is None or bool(bias.segments[0][b, q] == bias.segments[1][b, m])
        seen &= not bias.causal or m <= keys - queries + q
        rows.append(number if seen else torch.tensor(-math.inf, dtype=torch.float64))
    return torch.stack(rows).view(batch, heads, queries, keys)


REAL = torch.tensor([[True] * 4 + [False] * 3, [True, False] * 3 + [True]])
OF_QUERIES = torch.tensor([[1, 1, 1, 2, 2], [1, 2, 2, 3, 3]])
OF_KEYS = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0]])
BIASES = {
    "nothing": {},
    "distances": {"by_distance_HR": number(3, 11, seed=9)},
    "causal": {"by_distance_HR": number(3, 11, seed=9), "causal": True},
    "real keys": {"real_BM": REAL},
    "segments": {"segments": (OF_QUERIES, OF_KEYS)},
    "all": {"by_distance_HR": number(3, 11, seed=9), "real_BM": REAL | True, "segments": (OF_QUERIES, OF_KEYS)},
}


@pytest.mark.parametrize("name", BIASES)
def test_equals_torchs_without_scale(name):
    bias = Bias(**BIASES[name])
    leaves = qkv()
    if bias.by_distance_HR is not None:
        leaves.append(bias.by_distance_HR.clone().requires_grad_())
        bias = replace(bias, by_distance_HR=leaves[-1])
    ours, theirs = attention(*leaves[:3], bias, None), torchs(*leaves[:3], dense(bias, 5, 7))
    assert ours.shape == (2, 5, 3, 4) and far(theirs, ours) < 1e-14
    weight = number(2, 5, 3, 4, seed=5)
    expected = torch.autograd.grad((theirs * weight).sum(), leaves)
    for a, b in zip(expected, torch.autograd.grad((ours * weight).sum(), leaves), strict=True):
        assert far(a, b) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masked_keys_have_no_part_and_rows_without_keys_stay_finite(dtype):
    q, k, v = (x.to(dtype) for x in qkv())
    real = torch.tensor([[True] * 4 + [False] * 3, [False] * 7])
    out = attention(q, k, v, Bias(real_BM=real), None)
    seen = attention(q[:1], k[:1, :4], v[:1, :4], Bias(), None)
    assert out.dtype == dtype and torch.isfinite(out).all()
    rounding = 10 * torch.finfo(dtype).eps
    assert far(seen.double(), out[:1].double()) < rounding
    assert far(v[1:].double().mean(1, keepdim=True).expand(1, 5, 3, 4), out[1:].double()) < rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_without_keys_does_not_see_the_future(dtype):
    """A causal row over keys none of which is real has equal weights for those up to itself."""
    q, k, v = (x.to(dtype) for x in qkv(6, 6))
    distances = number(3, 11, seed=9).to(torch.promote_types(dtype, torch.float32))
    out = attention(q, k, v, Bias(distances, causal=True, real_BM=torch.zeros(2, 6, dtype=torch.bool)), None)
    means = v.double().cumsum(1) / torch.arange(1, 7).view(6, 1, 1)
    assert out.dtype == dtype and far(means, out.double()) < 10 * torch.finfo(dtype).eps


def test_causal_rows_see_nothing_later():
    q, k, v = (x.detach() for x in qkv(6, 6))
    bias = Bias(causal=True)
    before = attention(q, k, v, bias, None)
    k[:, 4:], v[:, 4:] = 100.0, -50.0
    after = attention(q, k, v, bias, None)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_dropout_falls_on_the_weights():
    q, k, v = qkv()
    states = fold(fold(fold(start(3, CPU), torch.arange(2)), torch.arange(3)), torch.arange(5))
    kept = (to_uniform(fold(states, torch.arange(7))) >= 0.4).double() / 0.6
    assert 0.4 < (kept > 0).double().mean() < 0.8
    weights = torch.softmax(torch.einsum("bqhk,bmhk->bhqm", q, k), -1) * kept
    out = attention(q, k, v, Bias(), Drop(0.4, states))
    assert far(torch.einsum("bhqm,bmhk->bqhk", weights, v), out) < 1e-14


def test_logits_and_softmax_are_at_least_float32():
    """Two keys whose logits, 257 and 256, are one number in bf16."""
    q = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    k = torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=torch.bfloat16).view(1, 2, 1, 2)
    v = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).view(1, 2, 1, 1)
    out = attention(q, k, v, Bias(), None)
    assert out.item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), rel=4e-3)
