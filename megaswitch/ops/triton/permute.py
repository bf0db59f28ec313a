"""Tokens' rows back from the order of experts: the kernels of `ops/fused/permute.py` for the GPU.

Forward reads and writes a row of D numbers for each kept assignment, backward reads two and writes one, with two to
four operations a number where an H100 could do 20 a byte: only bytes count. A program has one token, whose rows it
reads whole (768 to 4,096 numbers of bfloat16 are 2 to 8 KB, each row a few whole sectors, wherever it lies), and as
many programs are resident as bandwidth times latency asks for (15 KB a multiprocessor). Every row has one writer, and a
token's choices are added in their order: nothing depends on who comes first.

T tokens, K choices a token, N kept rows, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.tune import tuned, wide


@tuned([4, 2, 8], ["D"])
@triton.jit
def _collect(rows, gate, place, out, N, D, K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    t, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], WIDE)
    for k in tl.static_range(K):
        n = tl.load(place + t * K + k)
        row = tl.load(rows + n * D + d, mask=d < tl.where(n < N, D, 0), other=0.0).to(WIDE)
        if gate is not None:
            row *= tl.load(gate + t * K + k).to(WIDE)
        total += row
    tl.store(out + t * D + d, total.to(out.dtype.element_ty), mask=d < D)


@tuned([4, 2, 8], ["D"])
@triton.jit
def _collect_backward(
    grad, rows, gate, place, d_rows, d_gate, N, D, K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    t, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    g = tl.load(grad + t * D + d, mask=d < D, other=0.0).to(WIDE)
    for k in tl.static_range(K):
        n = tl.load(place + t * K + k)
        inside = d < tl.where(n < N, D, 0)
        row = tl.load(rows + n * D + d, mask=inside, other=0.0).to(WIDE)
        by = tl.load(gate + t * K + k).to(WIDE)
        tl.store(d_rows + n * D + d, (g * by).to(d_rows.dtype.element_ty), mask=inside)
        tl.store(d_gate + t * K + k, tl.sum(g * row, 0).to(d_gate.dtype.element_ty))


def collect_rows(rows: Tensor, gate: Tensor | None, place: Tensor, choices: int) -> Tensor:
    """See `ops/fused/permute.py`."""
    rows, place, gate = rows.contiguous(), place.contiguous(), None if gate is None else gate.contiguous()
    tokens, (kept, width) = len(place) // choices, rows.shape
    out = rows.new_empty(tokens, width)
    constants = {"K": choices, "WIDE": wide(rows.dtype), "BLOCK": triton.next_power_of_2(width)}
    if tokens:
        _collect[(tokens,)](rows, gate, place, out, kept, width, **constants)
    return out


def collect_rows_backward(grad: Tensor, rows: Tensor, gate: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops/fused/permute.py`."""
    grad, rows, gate, place = (x.contiguous() for x in (grad, rows, gate, place))
    (kept, width), (tokens, choices) = rows.shape, gate.shape
    d_rows, d_gate = torch.empty_like(rows), torch.empty_like(gate)
    constants = {"K": choices, "WIDE": wide(rows.dtype), "BLOCK": triton.next_power_of_2(width)}
    if tokens:
        _collect_backward[(tokens,)](grad, rows, gate, place, d_rows, d_gate, kept, width, **constants)
    return d_rows, d_gate
