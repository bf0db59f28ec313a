"""Adafactor's passes: the kernels of `ops/fused/adafactor.py` for the GPU.

For each number of 4 bytes that is read there are three to six operations, where an H100 could do 80: only bytes count.
The three passes read 4, 8 and 8 bytes a parameter and write 4 in the last, 24 in all (18 with gradients in bfloat16):
Switch-C's 1.6 T parameters over 512 GPUs take 22 ms in float32 at 3.35 TB/s. A program has a tile of 32 rows and up to
1,024 columns and passes over 128 columns at a time: 16 KB are under way, a multiprocessor's share of bandwidth times
latency (15 KB), and three to four programs are resident. Sums by row stay in registers, sums by column are written
once for 32 rows: an eighth of a byte a parameter. A matrix of 768 x 3,072 is 72 programs and a bucket's experts are
some thousands, for 132 multiprocessors. Whole updates do the passes over all matrices together: one matrix after the
other, as on a CPU, would leave most of the GPU idle, and no 50 MB of cache holds a bucket.

All sums are by tiles, then over tiles by torch: their order depends on shapes alone.

B matrices of R rows and C columns, U units, N elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.reference.adafactor import Step, row_factors, scales

_ROWS = 32
_COLS = 128
_SPAN = 1024  # columns of a program
_RUN = 4096  # elements of a program where nothing is factored


@triton.jit
def _tile(B_row, C_col, R, C, ROWS: tl.constexpr, COLS: tl.constexpr):
    r, c = B_row + tl.arange(0, ROWS), C_col + tl.arange(0, COLS)
    return r, c, (r < R)[:, None] & (c < C)[None, :]


@triton.jit
def _mean_squares(
    grad, row_parts, col_parts, R, C, batch_stride, row_stride, eps,
    ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Sums of squares of a tile: by row into [B, spans, R], by column into [B, blocks of rows, C]."""
    block, span, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    W: tl.constexpr = row_parts.dtype.element_ty
    rows = tl.zeros([ROWS], W)
    for first in range(span * SPAN, tl.minimum(C, (span + 1) * SPAN), COLS):
        r, c, inside = _tile(block * ROWS, first, R, C, ROWS, COLS)
        at = grad + b * batch_stride + r.to(tl.int64)[:, None] * row_stride + c[None, :]
        g = tl.load(at, mask=inside, other=0.0).to(W)
        squares = tl.where(inside, g * g + eps, 0.0)
        rows += tl.sum(squares, 1)
        tl.store(col_parts + (b * tl.num_programs(0) + block) * C + c, tl.sum(squares, 0), mask=c < C)
    r = block * ROWS + tl.arange(0, ROWS)
    tl.store(row_parts + (b * tl.num_programs(1) + span) * R + r, rows, mask=r < R)


@triton.jit
def _update(grad, rows, cols, b, r, c, inside, R, C, batch_stride, row_stride, row_lines, col_lines, W: tl.constexpr):
    at = grad + b * batch_stride + r.to(tl.int64)[:, None] * row_stride + c[None, :]
    row = tl.load(rows + b * row_lines + r, mask=r < R, other=0.0)
    col = tl.load(cols + b * col_lines + c, mask=c < C, other=0.0)
    return tl.load(at, mask=inside, other=0.0).to(W) * row[:, None] * col[None, :]


@triton.jit
def _squares(
    parts, weights, grad, rows, cols, R, C, batch_stride, row_stride, row_lines, col_lines,
    ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Sums of squares of a tile's updates and weights, into [2, B, tiles]."""
    block, span, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    W: tl.constexpr = parts.dtype.element_ty
    updates = tl.zeros([ROWS], W)
    values = tl.zeros([ROWS], W)
    for first in range(span * SPAN, tl.minimum(C, (span + 1) * SPAN), COLS):
        r, c, inside = _tile(block * ROWS, first, R, C, ROWS, COLS)
        u = _update(grad, rows, cols, b, r, c, inside, R, C, batch_stride, row_stride, row_lines, col_lines, W)
        at = weights + b * batch_stride + r.to(tl.int64)[:, None] * row_stride + c[None, :]
        p = tl.load(at, mask=inside, other=0.0)
        updates += tl.sum(u * u, 1)
        values += tl.sum(p * p, 1)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    place = parts + b * tiles + block * tl.num_programs(1) + span
    tl.store(place, tl.sum(updates, 0))
    tl.store(place + tl.num_programs(2) * tiles, tl.sum(values, 0))


@triton.jit
def _apply(
    weights, grad, rows, cols, scale, R, C, batch_stride, row_stride, row_lines, col_lines, scale_stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    block, span, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    W: tl.constexpr = weights.dtype.element_ty
    by = tl.load(scale + b * scale_stride)
    for first in range(span * SPAN, tl.minimum(C, (span + 1) * SPAN), COLS):
        r, c, inside = _tile(block * ROWS, first, R, C, ROWS, COLS)
        u = _update(grad, rows, cols, b, r, c, inside, R, C, batch_stride, row_stride, row_lines, col_lines, W)
        at = weights + b * batch_stride + r.to(tl.int64)[:, None] * row_stride + c[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + u * by, mask=inside)


@triton.jit
def _moments(second, parts, weights, grad, N, weight, eps, BLOCK: tl.constexpr):
    """Moves a run of second moments towards the squares; sums of squares of updates and weights into [2, programs]."""
    W: tl.constexpr = second.dtype.element_ty
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    g = tl.load(grad + i, mask=inside, other=0.0).to(W)
    old = tl.load(second + i, mask=inside, other=1.0)
    by = tl.load(weight)
    new = tl.where(by < 0.5, old + by * (g * g + eps - old), g * g + eps - (g * g + eps - old) * (1.0 - by))
    tl.store(second + i, new, mask=inside)
    p = tl.load(weights + i, mask=inside, other=0.0)
    tl.store(parts + tl.program_id(0), tl.sum(tl.where(inside, g * g / new, 0.0), 0))
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), tl.sum(p * p, 0))


@triton.jit
def _apply_moments(weights, grad, second, scale, N, BLOCK: tl.constexpr):
    W: tl.constexpr = second.dtype.element_ty
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    u = tl.load(grad + i, mask=inside, other=0.0).to(W) / tl.sqrt(tl.load(second + i, mask=inside, other=1.0))
    p = tl.load(weights + i, mask=inside, other=0.0)
    tl.store(weights + i, p + u * tl.load(scale), mask=inside)


_TILES = {"ROWS": _ROWS, "COLS": _COLS, "SPAN": _SPAN}


def _grid(grad: Tensor) -> tuple[int, int, int]:
    batch, rows, cols = grad.shape
    return triton.cdiv(rows, _ROWS), triton.cdiv(cols, _SPAN), batch


def _sizes(grad: Tensor) -> tuple[int, int, int, int]:
    return grad.shape[1], grad.shape[2], grad.stride(0), grad.stride(1)


def adafactor_mean_squares_(
    rows: Tensor, cols: Tensor, grad: Tensor, row_length: float, col_length: float, eps: float
) -> None:
    """See `ops/fused/adafactor.py`; gradient and weights have the same strides."""
    blocks, spans, batch = grid = _grid(grad)
    row_parts = rows.new_empty(batch, spans, grad.shape[1])
    col_parts = rows.new_empty(batch, blocks, grad.shape[2])
    _mean_squares[grid](grad, row_parts, col_parts, *_sizes(grad), eps, **_TILES)
    rows += row_parts.sum(1) / row_length
    cols += col_parts.sum(1) / col_length


def adafactor_squares_(sums: Tensor, weights: Tensor, grad: Tensor, rows: Tensor, cols: Tensor) -> None:
    """See `ops/fused/adafactor.py`."""
    grid = _grid(grad)
    parts = weights.new_empty(2, grid[2], grid[0] * grid[1])
    _squares[grid](parts, weights, grad, rows, cols, *_sizes(grad), rows.stride(0), cols.stride(0), **_TILES)
    sums += parts.sum(2) if sums.shape == parts.shape[:2] else parts.sum((1, 2)).unsqueeze(1)


def adafactor_apply_(weights: Tensor, grad: Tensor, rows: Tensor, cols: Tensor, scale: Tensor) -> None:
    """See `ops/fused/adafactor.py`."""
    step = scale.stride(0) if len(scale) > 1 else 0
    lines = (rows.stride(0), cols.stride(0), step)
    _apply[_grid(grad)](weights, grad, rows, cols, scale, *_sizes(grad), *lines, **_TILES)


def adafactor_update_(
    weights: Tensor, rows: Tensor, cols: Tensor, grad: Tensor, decay: float, lr: float, clip: float, scaled: bool,
    eps: float, least: float,
) -> None:  # fmt: skip
    """See `ops/fused/adafactor.py`."""
    fresh = torch.zeros_like(rows), torch.zeros_like(cols)
    adafactor_mean_squares_(*fresh, grad, grad.shape[2], grad.shape[1], eps)
    for running, new in zip((rows, cols), fresh, strict=True):
        running.lerp_(new, 1.0 - decay)
    factors = row_factors(rows), cols.rsqrt()
    sums = rows.new_zeros(2, len(rows))
    adafactor_squares_(sums, weights, grad, *factors)
    step = Step(decay, lr, clip, scaled)
    adafactor_apply_(weights, grad, *factors, scales(sums, grad.shape[1] * grad.shape[2], step))


def adafactor_moments_(second: Tensor, sums: Tensor, weights: Tensor, grad: Tensor, decay: float, eps: float) -> None:
    """See `ops/fused/adafactor.py`."""
    size = grad.numel()
    parts = weights.new_empty(2, triton.cdiv(size, _RUN))
    weight = weights.new_full((1,), 1.0 - decay)  # numbers that are handed over as such are float32
    _moments[(triton.cdiv(size, _RUN),)](second, parts, weights, grad, size, weight, eps, _RUN)
    sums += parts.sum(1, keepdim=True)


def adafactor_apply_moments_(weights: Tensor, grad: Tensor, second: Tensor, scale: Tensor) -> None:
    """See `ops/fused/adafactor.py`."""
    size = grad.numel()
    _apply_moments[(triton.cdiv(size, _RUN),)](weights, grad, second, scale, size, _RUN)
