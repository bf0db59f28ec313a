"""Adafactor (Shazeer and Stern 2018; the rules of T5X) over flat segments, exact however tensors are cut.

A segment of a row-major matrix is at most three rectangles. Each rank adds the row and column sums of its
rectangles in global coordinates; summed over the ranks that hold the others they are those of the whole
matrix. Experts are matrices of their own, so that expert parallelism needs no communication here.

A parameter has X matrices on this rank (its experts, or one), each of R rows and C columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_reduce_
from megaswitch.optim.bucket import Bucket, Entry, Piece
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import StateTensor
from megaswitch.params.boxes import Box
from megaswitch.params.spec import ParamSpec

SQUARE_EPSILON = 1e-30
LEAST_SCALE = 1e-3


def is_factored(spec: ParamSpec, min_dim: int) -> bool:
    """Experts always, over their last two dimensions; other tensors when they are matrices with both sides at
    least `min_dim`. Decided from the global shape, so that no layout changes it."""
    return spec.expert or (len(spec.shape) == 2 and min(spec.shape) >= min_dim)


def second_moment_decay(count: int, rate: float) -> float:
    """1 - t^-rate for update t = 1, 2, ...: 0 at the first, so that nothing needs a bias correction."""
    share: float = float(count) ** -rate
    return 1.0 - share


@dataclass(frozen=True)
class _Parameter:
    """One parameter's places in its bucket's statistics, and its pieces in this rank's segment.

    `rows_XR`, `cols_XC` are the running means (views), None when not factored; `matrices` are the numbers of
    its matrices in the bucket's sums.
    """

    entry: Entry
    pieces: list[Piece]
    rows: slice | None
    cols: slice | None
    matrices: slice

    @property
    def count(self) -> int:
        """Matrices on this rank."""
        first, last = _bounds(self.matrices)
        return last - first

    @property
    def elements(self) -> int:
        """Elements of one whole matrix."""
        spec = self.entry.spec
        matrices: int = spec.shape[0] if spec.expert else 1
        return spec.size // matrices

    def of_rows(self, statistics: Tensor) -> Tensor:
        """[X, R] of the bucket's statistics."""
        assert self.rows is not None
        return statistics[self.rows].view(self.count, -1)

    def of_cols(self, statistics: Tensor) -> Tensor:
        """[X, C] of the bucket's statistics."""
        assert self.cols is not None
        return statistics[self.cols].view(self.count, -1)

    def place(self, piece: Piece) -> tuple[slice, slice, slice]:
        """Which matrices (of this rank's), rows and columns (global) a piece of matrices covers."""
        if not self.entry.spec.expert:
            rows, cols = piece.box.slices
            return slice(0, 1), rows, cols
        experts, rows, cols = piece.box.slices
        first = self.entry.box.offset[0]
        return slice(experts.start - first, experts.stop - first), rows, cols

    def owner(self, piece: Piece) -> slice:
        """The matrices of a piece as places in the bucket's sums."""
        if not self.entry.spec.expert:
            return self.matrices
        experts, start = self.place(piece)[0], self.matrices.start
        return slice(start + experts.start, start + experts.stop)


class _BucketState:
    """Statistics of one bucket: `statistics` holds running row and column means, `second` the unfactored moments."""

    def __init__(self, bucket: Bucket, min_dim: int) -> None:
        self.bucket, self.parameters = bucket, list[_Parameter]()
        used = matrices = 0
        for entry in bucket.entries:
            pieces = [p for p in bucket.pieces if p.entry is entry]
            count = entry.box.shape[0] if entry.spec.expert else 1
            rows = cols = None
            if is_factored(entry.spec, min_dim):
                height, width = entry.spec.shape[-2:]
                rows = slice(used, used + count * height)
                cols = slice(rows.stop, rows.stop + count * width)
                used = cols.stop
            self.parameters.append(_Parameter(entry, pieces, rows, cols, slice(matrices, matrices + count)))
            matrices += count
        self.num_matrices = matrices
        self.statistics = bucket.master.new_zeros(used)
        plain = [p for parameter in self.parameters if parameter.rows is None for p in parameter.pieces]
        self.second = {piece: torch.zeros_like(piece.view(bucket.master)) for piece in plain}


class Adafactor:
    """Second moments by rows and columns, updates clipped by their root mean square, steps relative to the
    parameter's; no first moment, no bias correction, no decay."""

    def __init__(self, buckets: Buckets, config: OptimConfig) -> None:
        self.config = config
        self.states = [_BucketState(bucket, config.min_dim_to_factor) for bucket in buckets.buckets]

    @torch.no_grad()
    def step(self, lr: float, count: int) -> None:
        """Update number `count` (from 1)."""
        decay = second_moment_decay(count, self.config.decay_rate)
        for state in self.states:
            self._update_statistics(state, decay)
            for parameter in state.parameters:
                self._precondition(state, parameter, decay)
            self._apply(state, lr)

    def _update_statistics(self, state: _BucketState, decay: float) -> None:
        """Bring in this step's mean squares of rows and columns (one all-reduce an axis)."""
        fresh = torch.zeros_like(state.statistics)
        for parameter in state.parameters:
            if parameter.rows is None:
                continue
            rows_XR, cols_XC = parameter.of_rows(fresh), parameter.of_cols(fresh)
            for piece in parameter.pieces:
                matrices, rows, cols = parameter.place(piece)
                squares = _matrices(piece.view(state.bucket.grad_segment)).square() + SQUARE_EPSILON
                rows_XR[matrices, rows] += squares.sum(2) / cols_XC.shape[1]
                cols_XC[matrices, cols] += squares.sum(1) / rows_XR.shape[1]
        for axis in state.bucket.axes.statistics:
            all_reduce_(fresh, axis)
        state.statistics.lerp_(fresh, 1.0 - decay)

    def _precondition(self, state: _BucketState, parameter: _Parameter, decay: float) -> None:
        """Replace a parameter's gradient pieces by updates before clipping."""
        segment = state.bucket.grad_segment
        if parameter.rows is None:
            for piece in parameter.pieces:
                grad, second = piece.view(segment), state.second[piece]
                second.lerp_(grad.square() + SQUARE_EPSILON, 1.0 - decay)
                grad.mul_(second.rsqrt())
            return
        rows_XR, cols_XC = parameter.of_rows(state.statistics), parameter.of_cols(state.statistics)
        row_factor = (rows_XR / rows_XR.mean(1, keepdim=True)).rsqrt_()
        col_factor = cols_XC.rsqrt()
        for piece in parameter.pieces:
            matrices, rows, cols = parameter.place(piece)
            grad = _matrices(piece.view(segment))
            grad.mul_(row_factor[matrices, rows].unsqueeze(2)).mul_(col_factor[matrices, cols].unsqueeze(1))

    def _apply(self, state: _BucketState, lr: float) -> None:
        """Clip updates and scale them by the parameters' root mean squares (one all-reduce an axis)."""
        bucket = state.bucket
        sums = bucket.master.new_zeros(2, state.num_matrices)
        for parameter in state.parameters:
            for piece in parameter.pieces:
                for row, flat in enumerate((bucket.grad_segment, bucket.master)):
                    sums[row, parameter.owner(piece)] += _per_matrix(piece, flat).square().sum(1)
        for axis in bucket.axes.statistics:
            all_reduce_(sums, axis)
        for parameter in state.parameters:
            rms = (sums[:, parameter.matrices] / parameter.elements).sqrt()
            clip = (rms[0] / self.config.update_clip).clamp(min=1.0)
            scale = -lr * rms[1].clamp(min=LEAST_SCALE) / clip
            for piece in parameter.pieces:
                of_piece = slice(*(i - parameter.matrices.start for i in _bounds(parameter.owner(piece))))
                update = _per_matrix(piece, bucket.grad_segment) * scale[of_piece].unsqueeze(1)
                _per_matrix(piece, bucket.master).add_(update)

    def state(self) -> Iterator[StateTensor]:
        """Row and column means ("row/", "col/" and the parameter's name), and unfactored moments ("second/")."""
        for state in self.states:
            axes = state.bucket.axes
            alone = axes.speaks and axes.data.first and all(axis.first for axis in axes.cut)
            for parameter in state.parameters:
                yield from _row_and_col_state(state, parameter, alone)
            for piece, second in state.second.items():
                spec = piece.entry.spec
                yield StateTensor(f"second/{spec.name}", spec.shape, piece.box, second, axes.primary)


def _bounds(of: slice) -> tuple[int, int]:
    """First and one past the last."""
    return of.start, of.stop


def _matrices(box: Tensor) -> Tensor:
    """A piece as [matrices, rows, columns]."""
    return box if box.dim() == 3 else box.unsqueeze(0)


def _per_matrix(piece: Piece, flat: Tensor) -> Tensor:
    """A piece as [matrices, elements]."""
    run = flat[piece.start : piece.stop]
    return run.view(piece.box.shape[0], -1) if piece.entry.spec.expert else run.view(1, -1)


def _row_and_col_state(state: _BucketState, parameter: _Parameter, primary: bool) -> Iterator[StateTensor]:
    if parameter.rows is None:
        return
    spec, box = parameter.entry.spec, parameter.entry.box
    for name, size, view in (
        ("row", spec.shape[-2], parameter.of_rows(state.statistics)),
        ("col", spec.shape[-1], parameter.of_cols(state.statistics)),
    ):
        if spec.expert:
            part = Box((box.offset[0], 0), (box.shape[0], size))
            yield StateTensor(f"{name}/{spec.name}", (spec.shape[0], size), part, view, primary)
        else:
            yield StateTensor(f"{name}/{spec.name}", (size,), Box((0,), (size,)), view[0], primary)
