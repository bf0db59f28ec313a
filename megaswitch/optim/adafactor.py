"""Adafactor (Shazeer and Stern 2018) over flat segments, by T5X's or mesh-tensorflow's rule, exact however tensors
are cut.

A segment of a row-major tensor is a few boxes (`Piece`). Each rank adds the means of its boxes in global coordinates;
summed over the ranks that hold the others they are those of the whole tensor. See `adafactor_statistics.py` for what is
summed where, `ops/reference/adafactor.py` for the arithmetic. What no other rank has a part of is updated matrix by
matrix, the rest of a bucket together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.adafactor import Passes, Step, row_factors, scales
from megaswitch.optim.adafactor_statistics import Flats, Means, Parameter, Plan, plan_parameters
from megaswitch.optim.bucket import Bucket, Piece
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import Done, StateTensor, nothing
from megaswitch.topology.topology import Topology

# B matrices of R rows and C columns, U units, N elements


def second_moment_decay(count: int, rate: float) -> float:
    """1 - t^-rate for update t = 1, 2, ...: 0 at the first, so that nothing needs a bias correction."""
    share: float = float(count) ** -rate
    return 1.0 - share


@dataclass(frozen=True)
class _Matrices:
    """A piece of a factored parameter, and its lines of means: views of the bucket's and its state's storage."""

    weights_BRC: Tensor
    grad_BRC: Tensor
    rows_BR: Tensor
    cols_BC: Tensor


@dataclass(frozen=True)
class _Part:
    """A piece of a factored parameter that is updated with others; `rows` and `cols` are means, then factors."""

    matrices: _Matrices
    lengths: tuple[int, int]
    sums_2U: Tensor


@dataclass(frozen=True)
class _Plain:
    """A piece of a parameter that is not factored, with its second moments."""

    piece: Piece
    weights_N: Tensor
    grad_N: Tensor
    second_N: Tensor
    sums_21: Tensor


class _BucketState:
    """One bucket's parameters and statistics: `running` means of factored ones, `own` of those that are alone, and what
    is computed anew in each step."""

    def __init__(self, bucket: Bucket, config: OptimConfig, topology: Topology) -> None:
        self.bucket = bucket
        self.plan: Plan = plan_parameters(bucket, config, topology)
        self.running, self.fresh = (self.plan.means.zeros(bucket.master) for _ in range(2))
        self.own = self.plan.own.zeros(bucket.master)
        self.sums = self.plan.sums.zeros(bucket.master, 2)
        self.elements = {axes: torch.ones_like(flat[0]) for axes, flat in self.sums.items()}
        self.alone: list[_Matrices] = []
        self.parts: list[_Part] = []
        self.plain: list[_Plain] = []
        for parameter in self.plan.parameters:
            parameter.sums.view(self.elements).fill_(parameter.unit_elements)
            for piece in parameter.pieces:
                self._add(parameter, piece)

    def _add(self, parameter: Parameter, piece: Piece) -> None:
        flats = self.bucket.master, self.bucket.grad_segment
        sums_2U = parameter.sums.view(self.sums)[:, parameter.units(piece)]
        if parameter.factored is None:
            weights_N, grad_N = (flat[piece.start : piece.stop] for flat in flats)
            self.plain.append(_Plain(piece, weights_N, grad_N, torch.zeros_like(weights_N), sums_2U))
            return
        means = self.own if parameter.alone else self.fresh
        lines = (kind.lines(means, piece) for kind in parameter.factored)
        matrices = _Matrices(*(parameter.matrices(piece, flat) for flat in flats), *lines)
        if parameter.alone:
            self.alone.append(matrices)
        else:
            rows, cols = parameter.factored
            self.parts.append(_Part(matrices, (rows.length, cols.length), sums_2U))


class Adafactor:
    """Second moments by rows and columns, updates clipped by their root mean square, steps relative to the
    parameter's (unless `optim.multiply_by_parameter_scale` is off); no first moment, no bias correction, no decay."""

    def __init__(self, buckets: Buckets, config: OptimConfig, ops: Ops) -> None:
        self.config, self.passes = config, ops.adafactor
        self.states = [_BucketState(bucket, config, buckets.topology) for bucket in buckets.buckets]

    @torch.no_grad()
    def step(self, lr: float, count: int, done: Done = nothing) -> None:
        """Update number `count` (from 1); calls `done` with each updated bucket."""
        config = self.config
        decay = second_moment_decay(count, config.decay_rate)
        step = Step(decay, lr, config.update_clip, config.multiply_by_parameter_scale)
        for state in self.states:
            for m in state.alone:
                self.passes.update_(m.weights_BRC, m.rows_BR, m.cols_BC, m.grad_BRC, step)
            if state.parts or state.plain:
                _update_means(self.passes, state, step)
                _sum_squares(self.passes, state, step)
                _apply(self.passes, state, step)
            done(state.bucket)

    def state(self) -> Iterator[StateTensor]:
        """Means over the later and the earlier factored dimension ("row/", "col/" and the parameter's name), and
        unfactored moments ("second/")."""
        for state in self.states:
            for parameter in state.plan.parameters:
                flats = state.own if parameter.alone else state.running
                for name, means in zip(("row", "col"), parameter.factored or (), strict=False):
                    yield _state_of(f"{name}/{parameter.entry.spec.name}", state, means, flats)
            for plain in state.plain:
                spec, box = plain.piece.entry.spec, plain.piece.box
                view = plain.second_N.view(box.shape)
                yield StateTensor(f"second/{spec.name}", spec.shape, box, view, state.bucket.axes.primary)


def _update_means(passes: Passes, state: _BucketState, step: Step) -> None:
    """Bring in this step's mean squares; `fresh` then holds the factors that follow from them."""
    for flat in state.fresh.values():
        flat.zero_()
    for part in state.parts:
        m = part.matrices
        passes.add_mean_squares_(m.rows_BR, m.cols_BC, m.grad_BRC, *part.lengths)
    state.plan.means.sum_(state.fresh)
    for axes, running in state.running.items():
        running.lerp_(state.fresh[axes], 1.0 - step.decay)
        torch.rsqrt(running, out=state.fresh[axes])
    for parameter in state.plan.parameters:
        if parameter.factored and not parameter.alone:
            rows = parameter.factored[0]
            rows.lines(state.fresh).copy_(row_factors(rows.lines(state.running)))


def _sum_squares(passes: Passes, state: _BucketState, step: Step) -> None:
    """Of each unit's update and parameter, over all ranks that hold a part of it; unfactored moments on the way."""
    for flat in state.sums.values():
        flat.zero_()
    for part in state.parts:
        m = part.matrices
        passes.add_squares_(part.sums_2U, m.weights_BRC, m.grad_BRC, m.rows_BR, m.cols_BC)
    for plain in state.plain:
        passes.add_moments_(plain.second_N, plain.sums_21, plain.weights_N, plain.grad_N, step.decay)
    state.plan.sums.sum_(state.sums)


def _apply(passes: Passes, state: _BucketState, step: Step) -> None:
    """Clip updates and scale them by the parameters' root mean squares: scales take the place of the updates' sums."""
    for axes, sums_2U in state.sums.items():
        sums_2U[0] = scales(sums_2U, state.elements[axes], step)
    for part in state.parts:
        m = part.matrices
        passes.apply_(m.weights_BRC, m.grad_BRC, m.rows_BR, m.cols_BC, part.sums_2U[0])
    for plain in state.plain:
        passes.apply_moments_(plain.weights_N, plain.grad_N, plain.second_N, plain.sums_21[0])


def _state_of(name: str, state: _BucketState, means: Means, flats: Flats) -> StateTensor:
    """Means are the same on all ranks they were summed over, so that the first of them speaks."""
    axes, topology = state.bucket.axes, state.plan.means.topology
    summed: list[bool] = [topology.axis(axis).first for axis in means.place.axes]
    primary = axes.speaks and axes.data.first and all(summed)
    view: Tensor = means.place.view(flats)
    return StateTensor(name, means.global_shape, means.box, view, primary)
