"""Products of runs of rows with the matrices of their experts: the kernels of `ops/fused/products.py` for the GPU.

A multiprocessor of an H100 does 7.5 TFLOP/s in bfloat16 and has 42 GB/s of the second cache's 5.5 TB/s: products keep
up with it where 180 operations stand against a byte. A tile of 128 rows has 85 with 256 columns and 64 with 128, so
tiles are as large as registers hold them: 128 x 256 sums in float32 are 128 registers a thread of 8 warps. GEGLU's
two matrices share a tile's columns, 128 of each: it reads rows once for both, has the same 85, and its activation costs
no reading at all, where a kernel of its own reads two numbers for one that it writes. Three or four steps of 64
products are under way, of 32 or 48 KB each: what shared memory holds.

Of the second memory nothing is read twice: programs that run at the same time have 8 tiles of rows and as many columns
as there is room for, whose rows and matrices stay in the second cache. Where experts have fewer than 64 rows on the
average, their matrices' bytes bound the product (64 operations a byte of a matrix, where memory asks for 295), and a
tile of 64 rows computes nothing that would be waited for. How wide, deep and divided the rest is the GPU is asked.

A weight's gradient is summed over all rows of its expert in one program's registers, in their order, and added to what
it belongs to, in its type: 8 bytes a weight, where a product of its own and an addition take 12. Types of 4 bytes and
more (products in three passes of TF32) have a quarter of the columns, half the rows and half the depth.

The host knows how many rows each expert has, so tiles are laid out there; a table of 12 bytes a tile goes to the device
unwaited for. An expert's matrix has fewer than 2^31 numbers.

N rows sorted by expert, E experts, D inner and F outer width, T tiles.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver

from megaswitch.ops.triton.dot import dot
from megaswitch.ops.triton.geglu import sigmoid_of
from megaswitch.ops.triton.tune import fastest_of, wide

_SIDE_BY_SIDE = 8  # tiles of rows at the same time


def _config(cols: int, deep: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"COLS": cols, "DEEP": deep}, num_warps=warps, num_stages=stages)


_CONFIGS = [_config(128, 64, 4, 4), _config(256, 64, 8, 3), _config(128, 64, 8, 3)]


def _held(configs: Sequence[Any], *_: Any, **__: Any) -> list[Any]:
    """What registers have room for: before compute capability 9.0 operands are there, too, and 128 columns suffice
    (an A100 wants 62 operations against a byte)."""
    target = driver.active.get_current_target()
    most = 256 if target.backend == "cuda" and target.arch >= 90 else 128
    return [config for config in configs if config.kwargs["COLS"] <= most]


@triton.jit
def _place(tiles, columns, TOGETHER: tl.constexpr):
    """This program's tile and block of columns: TOGETHER tiles with all columns, then the next."""
    p = tl.program_id(0)
    first = p // (TOGETHER * columns) * TOGETHER
    many = tl.minimum(tiles - first, TOGETHER)
    p -= first * columns
    return first + p % many, p // many


@triton.jit
def _half(x, which: tl.constexpr):
    """The left columns or the right ones: what is done with sums needs registers beside them."""
    parts = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
    return parts[which]


@triton.jit
def _store(to, value, inside):
    tl.store(to, value.to(to.dtype.element_ty), mask=inside)


@fastest_of(_CONFIGS, ["D", "F", "ROWS", "inner_stride"], keep=_held)
@triton.jit
def _times(
    x, weight, gate, out, of_gate, of_x, table, tiles, D, F, expert_stride, inner_stride, outer_stride,
    relu: tl.constexpr, SHARE: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, TOGETHER: tl.constexpr,
    WIDE: tl.constexpr, COLS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """out = x weight, or max(x weight, 0), or gelu(x gate) (x weight) with both products beside; COLS / SHARE columns
    of a matrix."""
    WIDTH: tl.constexpr = COLS // SHARE
    STEP: tl.constexpr = DEEP // PARTS
    tile, column = _place(tiles, tl.cdiv(F, WIDTH), TOGETHER)
    expert, first = tl.load(table + tile * 3).to(tl.int64), tl.load(table + tile * 3 + 1)
    n, f, d = tl.arange(0, ROWS), column * WIDTH + tl.arange(0, WIDTH), tl.arange(0, STEP)
    count = tl.load(table + tile * 3 + 2) - first
    x += first.to(tl.int64) * D
    weight += expert * expert_stride
    if gate is not None:
        gate += expert * expert_stride
        of_gates = tl.zeros([ROWS, WIDTH], WIDE)
    # beyond the last row or column another is read, whose product is not stored
    row = tl.minimum(n, count - 1)[:, None] * D + d[None, :]
    at = d[:, None] * inner_stride + (f % F)[None, :] * outer_stride
    total = tl.zeros([ROWS, WIDTH], WIDE)
    for start in range(0, D, STEP):
        inside = d < D - start
        a = tl.load(x + row, mask=inside[None, :], other=0.0)
        b = tl.load(weight + at, mask=inside[:, None], other=0.0)
        total = dot(a, b, total)
        if gate is not None:
            c = tl.load(gate + at, mask=inside[:, None], other=0.0)
            of_gates = dot(a, c, of_gates)
        row += STEP
        at += STEP * inner_stride
    to = first.to(tl.int64) * F + n[:, None] * F
    for half in tl.static_range(2):
        f = column * WIDTH + half * (WIDTH // 2) + tl.arange(0, WIDTH // 2)
        inside, value = (n < count)[:, None] & (f < F)[None, :], _half(total, half)
        if gate is not None:
            g = _half(of_gates, half)
            _store(of_gate + to + f[None, :], g, inside)
            _store(of_x + to + f[None, :], value, inside)
            value *= g * sigmoid_of(g)
        if relu:
            value = tl.where(value < 0.0, 0.0, value)  # NaN stays
        _store(out + to + f[None, :], value, inside)


@fastest_of(_CONFIGS[1:], ["D", "F"], keep=_held, restored=["into"])
@triton.jit
def _add(
    into, x, grad, starts, D, F, expert_stride, inner_stride, outer_stride,
    SHARE: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, TOGETHER: tl.constexpr, WIDE: tl.constexpr,
    COLS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """into += x^T grad over an expert's rows: ROWS of D by COLS / SHARE of F."""
    WIDTH: tl.constexpr = COLS // SHARE
    STEP: tl.constexpr = DEEP // PARTS
    tile, column = _place(tl.cdiv(D, ROWS), tl.cdiv(F, WIDTH), TOGETHER)
    expert = tl.program_id(1).to(tl.int64)
    first = tl.load(starts + expert)
    count = tl.load(starts + expert + 1) - first
    if count > 0:
        d, f, n = tile * ROWS + tl.arange(0, ROWS), column * WIDTH + tl.arange(0, WIDTH), tl.arange(0, STEP)
        x += first.to(tl.int64) * D
        grad += first.to(tl.int64) * F
        left, right = n[:, None] * D + (d % D)[None, :], n[:, None] * F + (f % F)[None, :]
        total = tl.zeros([ROWS, WIDTH], WIDE)
        for _ in range(0, count, STEP):
            inside = (n < count)[:, None]
            a, b = tl.load(x + left, mask=inside, other=0.0), tl.load(grad + right, mask=inside, other=0.0)
            total = dot(tl.trans(a), b, total)
            x += STEP * D
            grad += STEP * F
            count -= STEP
        into += expert * expert_stride
        for half in tl.static_range(2):
            f = column * WIDTH + half * (WIDTH // 2) + tl.arange(0, WIDTH // 2)
            to = into + d[:, None] * inner_stride + f[None, :] * outer_stride
            inside = (d < D)[:, None] & (f < F)[None, :]
            before = tl.load(to, mask=inside, other=0.0).to(WIDE)
            _store(to, before + _half(total, half), inside)


def _tiles(counts: Sequence[int], rows: int, device: torch.device) -> Tensor:
    """[T, 3] int32 on the device: a tile's expert, its first row and its expert's end."""
    of_expert = torch.tensor(counts, dtype=torch.int64)
    tiles, end = (of_expert + rows - 1) // rows, of_expert.cumsum(0)
    expert = torch.repeat_interleave(tiles)
    earlier = torch.arange(len(expert)) - (tiles.cumsum(0) - tiles)[expert]
    table = torch.stack([expert, (end - of_expert)[expert] + earlier * rows, end[expert]], 1)
    return table.to(torch.int32).to(device, non_blocking=True)


def _constants(dtype: torch.dtype, rows: int, matrices: int = 1) -> dict[str, Any]:
    """What kernels are compiled for."""
    large = dtype.itemsize > 2
    return {
        "SHARE": matrices * (4 if large else 1),
        "PARTS": 2 if large else 1,
        "ROWS": rows // 2 if large else rows,
        "TOGETHER": _SIDE_BY_SIDE,
        "WIDE": wide(dtype),
    }


def _launch(
    x: Tensor, weight: Tensor, gate: Tensor | None, counts: Sequence[int], relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, (inner, outer) = x.contiguous(), weight.shape[1:]
    constants = _constants(x.dtype, 128 if len(x) >= 64 * len(counts) else 64, 1 if gate is None else 2)
    results = [x.new_empty(n, outer) for n in (len(x), *[0 if gate is None else len(x)] * 2)]
    if len(x):
        table = _tiles(counts, constants["ROWS"], x.device)
        sizes = (table, len(table), inner, outer, *weight.stride())

        def grid(meta: dict[str, Any]) -> tuple[int]:
            return (len(table) * triton.cdiv(outer, meta["COLS"] // meta["SHARE"]),)

        _times[grid](x, weight, gate, *results, *sizes, relu=relu, **constants)
    return results[0], results[1], results[2]


def grouped_times(x: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    """See `ops/fused/products.py`."""
    return _launch(x, weights, None, counts, False)[0]


def grouped_relu(x: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    """See `ops/fused/products.py`."""
    return _launch(x, weights, None, counts, True)[0]


def grouped_geglu(x: Tensor, gates: Tensor, weights: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops/fused/products.py`."""
    if gates.stride() != weights.stride():
        gates, weights = gates.contiguous(), weights.contiguous()
    return _launch(x, weights, gates, counts, False)


def add_grouped_(into: Tensor, rows: Tensor, cols: Tensor, counts: Sequence[int]) -> Tensor:
    """See `ops/fused/products.py`."""
    x, grad, (experts, inner, outer) = rows.contiguous(), cols.contiguous(), into.shape
    constants = _constants(x.dtype, 128)
    if len(x) == 0:
        return into
    starts = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0).to(torch.int32).to(x.device, non_blocking=True)

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        cols = triton.cdiv(outer, meta["COLS"] // meta["SHARE"])
        return triton.cdiv(inner, meta["ROWS"]) * cols, experts

    _add[grid](into, x, grad, starts, inner, outer, *into.stride(), **constants)
    return into
