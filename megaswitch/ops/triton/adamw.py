"""AdamW with the rounding of the weights: the kernel of `ops/fused/adamw.py` for the GPU.

A dozen operations, a root and a division stand against 30 bytes a parameter (20 with gradients and moments in
bfloat16), where an H100 could do 600 while it moves them: only bytes count. Switch-C's 1.6 T parameters over 512 GPUs
take 28 ms at 3.35 TB/s; an update with a rounding pass after it moves 34 bytes. A program has 1,024 elements of 16
bytes to read: 16 KB under way, a multiprocessor's share of bandwidth times latency.

N elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_RUN = 1024


@triton.jit
def _update(weights, grad, first, second, rounded, factors, N, RUN: tl.constexpr):
    W: tl.constexpr = weights.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * RUN + tl.arange(0, RUN)
    inside = n < N
    kept, rate, root = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    beta1, beta2, eps = tl.load(factors + 3), tl.load(factors + 4), tl.load(factors + 5)
    w = tl.load(weights + n, mask=inside, other=0.0)
    g = tl.load(grad + n, mask=inside, other=0.0).to(W)
    m = tl.load(first + n, mask=inside, other=0.0).to(W)
    v = tl.load(second + n, mask=inside, other=0.0).to(W)
    m += (g - m) * beta1
    v += (g * g - v) * beta2
    w = w * kept - rate * m / (tl.sqrt(v) * root + eps)
    tl.store(weights + n, w, mask=inside)
    tl.store(first + n, m.to(first.dtype.element_ty), mask=inside)
    tl.store(second + n, v.to(second.dtype.element_ty), mask=inside)
    if rounded is not None:
        tl.store(rounded + n, w.to(rounded.dtype.element_ty), mask=inside)


def adamw_(
    weights: Tensor, grad: Tensor, first: Tensor, second: Tensor, rounded: Tensor | None, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, count: int,
) -> None:  # fmt: skip
    """See `ops/fused/adamw.py`; the host does not wait for the copy of the factors."""
    corrections = 1.0 - beta1**count, (1.0 - beta2**count) ** -0.5
    numbers = (1.0 - lr * weight_decay, lr / corrections[0], corrections[1], 1.0 - beta1, 1.0 - beta2, eps)
    factors = torch.tensor(numbers, dtype=weights.dtype).to(weights.device, non_blocking=True)
    if weights.numel():
        programs = triton.cdiv(weights.numel(), _RUN)
        _update[(programs,)](weights, grad, first, second, rounded, factors, weights.numel(), _RUN)
