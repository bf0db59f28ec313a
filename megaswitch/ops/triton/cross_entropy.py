"""Cross-entropy's two passes over logits: the kernels of `ops/fused/cross_entropy.py` for the GPU.

Logits are read once for the statistics and once for the gradient, which is written in their place or in bfloat16: 12
or 10 bytes each, where torch's softmax, its logarithm and their backward take five to seven passes. An exponential a
number and pass: 16 a clock and multiprocessor are 3.6 T a second, 4.3 times what 3.35 TB/s brings of float32, so memory
bounds both. A program passes over its token's logits by 4,096 (16 KB under way, a multiprocessor's share of bandwidth
times latency) with 8 warps, 16 numbers a thread; a row of 32,128 is 8 tiles, and a block has hundreds of rows.

N tokens, V this part of the vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.tune import block, wide
from megaswitch.utils.precision import at_least_float32

_MOST = 4096


@triton.jit
def _statistics(logits, target, greatest, total, at_target, V, stride, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * stride
    most = tl.full([1], float("-inf"), WIDE)
    sums = tl.zeros([1], WIDE)
    for first in range(0, V, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < V, other=float("-inf")).to(WIDE)
        top = tl.maximum(most, tl.max(x, 0))
        base = tl.where(top == float("-inf"), 0.0, top)  # as long as there is no number yet
        sums = sums * tl.exp(most - base) + tl.sum(tl.exp(x - base), 0)
        most = top
    t = tl.load(target + n)
    held = (t >= 0) & (t < V)
    one = tl.arange(0, 1)
    tl.store(greatest + n + one, most)
    tl.store(total + n + one, sums)
    tl.store(at_target + n, tl.load(row + t, mask=held, other=0.0).to(WIDE))


@triton.jit
def _gradient(
    logits, target, log_z, grad, factor, into, V, stride, into_stride, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + n * stride + v, mask=v < V, other=0.0)
    d = tl.exp(x.to(WIDE) - tl.load(log_z + n)) * tl.load(factor + n)
    d -= tl.where(v == tl.load(target + n), tl.load(grad + n), 0.0)
    tl.store(into + n * into_stride + v, d.to(into.dtype.element_ty), mask=v < V)


def cross_entropy_statistics(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops/fused/cross_entropy.py`."""
    logits, (tokens, columns) = logits.contiguous(), logits.shape
    greatest, total, at_target = (
        torch.empty(tokens, dtype=at_least_float32(logits.dtype), device=logits.device) for _ in range(3)
    )
    if tokens:
        sizes = (columns, logits.stride(0), wide(logits.dtype), block(columns, _MOST))
        _statistics[(tokens,)](logits, target.contiguous(), greatest, total, at_target, *sizes, num_warps=8)
    return greatest, total, at_target


def cross_entropy_gradient(
    logits: Tensor, target: Tensor, log_z: Tensor, grad: Tensor, z_loss: float, into: Tensor
) -> None:
    """See `ops/fused/cross_entropy.py`; a row's logits lie side by side, and so do their gradients."""
    tokens, columns = logits.shape
    assert columns <= 1 or logits.stride(1) == into.stride(1) == 1
    factor = grad * (1.0 + 2.0 * z_loss * log_z)
    width = block(columns, _MOST)
    if tokens:
        rows = (target.contiguous(), log_z.contiguous(), grad.contiguous(), factor.contiguous())
        sizes = (columns, logits.stride(0), into.stride(0), wide(logits.dtype), width)
        _gradient[tokens, triton.cdiv(columns, width)](logits, *rows, into, *sizes, num_warps=8)
