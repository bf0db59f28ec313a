"""RMSNorm with the residual's addition: the kernels of `ops/fused/rms_norm.py` for the GPU.

A pass over memory each way: forward reads 2 and writes 2 numbers of 2 bytes where it computes some 6 operations, one
for a byte, where an H100 could do 20 (67 TFLOP/s in float32 over 3.35 TB/s). So all that counts is that enough bytes
are under way: bandwidth times latency is 3.35 TB/s x 0.6 us = 2 MB, 15 KB a multiprocessor. A program holds one row in
registers (4,096 numbers of bfloat16 are 8 KB, read twice with the residual), and two of them are resident at least.
How many warps share a row is what the GPU is asked.

The weight's gradient is a sum over rows: at most 512 programs, four for each of an H100's multiprocessors, keep a sum
of their own rows in registers and write it once: 512 x D x 4 bytes, a third of what is read of 1,000 rows, a tenth
from 3,500 on. The number of programs follows from the number of rows alone, so that the sum has one order everywhere.

N rows of D numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.tune import tuned, wide
from megaswitch.utils.precision import at_least_float32

_PROGRAMS = 512
_LEAST_ROWS = 4


@tuned([4, 8, 16], ["D"])
@triton.jit
def _forward(x, y, w, total, normed, rstd, D, eps, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    n, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < D
    row = tl.load(x + n * D + d, mask=inside, other=0.0)
    if y is not None:
        more = tl.load(y + n * D + d, mask=inside, other=0.0)
        row = (row.to(WIDE) + more.to(WIDE)).to(row.dtype)
        tl.store(total + n * D + d, row, mask=inside)
    value = row.to(WIDE)
    r = 1.0 / tl.sqrt(tl.sum(value * value, 0) / D + eps)
    weight = tl.load(w + d, mask=inside, other=0.0).to(row.dtype).to(WIDE)
    out = (value * r).to(row.dtype).to(WIDE) * weight
    tl.store(normed + n * D + d, out.to(row.dtype), mask=inside)
    tl.store(rstd + n, r)


@tuned([4, 8, 16], ["D"])
@triton.jit
def _backward(grad, more, x, w, rstd, dx, parts, N, D, each, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Rows [program x each, + each): their gradients, and what they bring to the weight's."""
    d = tl.arange(0, BLOCK)
    inside = d < D
    first = tl.program_id(0) * each
    at = d + first.to(tl.int64) * D
    dw = tl.zeros([BLOCK], WIDE)
    weight = tl.load(w + d, mask=inside, other=0.0).to(x.dtype.element_ty).to(WIDE)
    for n in range(first, tl.minimum(first + each, N)):
        row = tl.load(x + at, mask=inside, other=0.0)
        g = tl.load(grad + at, mask=inside, other=0.0).to(WIDE)
        r = tl.load(rstd + n)
        value = row.to(WIDE)
        gw = g * weight
        slope = r * r * tl.sum(gw * value, 0) * r / D
        out = r * gw - value * slope
        if more is not None:
            out += tl.load(more + at, mask=inside, other=0.0).to(WIDE)
        tl.store(dx + at, out.to(row.dtype), mask=inside)
        dw += g * (value * r).to(row.dtype).to(WIDE)
        at += D
    tl.store(parts + tl.program_id(0) * D + d, dw, mask=inside)


def add_rms_norm_forward(x: Tensor, y: Tensor | None, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops/fused/rms_norm.py`."""
    x, y, width = x.contiguous(), None if y is None else y.contiguous(), x.shape[-1]
    rows = x.numel() // width
    total, normed = x.new_empty(0 if y is None else x.shape), torch.empty_like(x)
    rstd = x.new_empty(rows, dtype=at_least_float32(x.dtype))
    constants = {"WIDE": wide(x.dtype), "BLOCK": triton.next_power_of_2(width)}
    if rows:
        _forward[(rows,)](x, y, w.contiguous(), total, normed, rstd, width, eps, **constants)
    return total, normed, rstd


def rms_norm_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, w: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ops/fused/rms_norm.py`."""
    grad, x, more = grad.contiguous(), x.contiguous(), None if grad_total is None else grad_total.contiguous()
    rows, width = len(rstd), x.shape[-1]
    each = max(_LEAST_ROWS, triton.cdiv(rows, _PROGRAMS))
    programs = triton.cdiv(rows, each)
    dx, parts = torch.empty_like(x), rstd.new_empty(programs, width)
    constants = {"WIDE": wide(x.dtype), "BLOCK": triton.next_power_of_2(width)}
    if rows:
        _backward[(programs,)](grad, more, x, w.contiguous(), rstd, dx, parts, rows, width, each, **constants)
    return dx, parts.sum(0)
