"""Adafactor (Shazeer and Stern 2018) over flat segments, by T5X's or mesh-tensorflow's rule, exact however tensors
are cut.

A segment of a row-major tensor is a few boxes (`Piece`). Each rank adds the means of its boxes in global coordinates;
summed over the ranks that hold the others they are those of the whole tensor. See `adafactor_statistics.py`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from megaswitch.optim.adafactor_statistics import Flats, Means, Parameter, Places, plan_parameters
from megaswitch.optim.bucket import Bucket
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import Done, StateTensor, nothing
from megaswitch.topology.topology import Topology

SQUARE_EPSILON = 1e-30
LEAST_SCALE = 1e-3


def second_moment_decay(count: int, rate: float) -> float:
    """1 - t^-rate for update t = 1, 2, ...: 0 at the first, so that nothing needs a bias correction."""
    share: float = float(count) ** -rate
    return 1.0 - share


class _BucketState:
    """One bucket's parameters and statistics: `running` means of factored ones, `second` moments of the others."""

    def __init__(self, bucket: Bucket, config: OptimConfig, topology: Topology) -> None:
        self.bucket, self.means, self.sums = bucket, Places(topology), Places(topology)
        self.parameters = plan_parameters(bucket, config, self.means, self.sums)
        self.running = self.means.zeros(bucket.master)
        plain = [p for parameter in self.parameters if parameter.factored is None for p in parameter.pieces]
        self.second = {piece: torch.zeros_like(piece.view(bucket.master)) for piece in plain}


class Adafactor:
    """Second moments by rows and columns, updates clipped by their root mean square, steps relative to the
    parameter's (unless `optim.multiply_by_parameter_scale` is off); no first moment, no bias correction, no decay."""

    def __init__(self, buckets: Buckets, config: OptimConfig) -> None:
        self.config = config
        self.states = [_BucketState(bucket, config, buckets.topology) for bucket in buckets.buckets]

    @torch.no_grad()
    def step(self, lr: float, count: int, done: Done = nothing) -> None:
        """Update number `count` (from 1); calls `done` with each updated bucket."""
        decay = second_moment_decay(count, self.config.decay_rate)
        for state in self.states:
            segment = state.bucket.wide_gradient()
            _update_means(state, segment, decay)
            for parameter in state.parameters:
                _precondition(state, segment, parameter, decay)
            self._apply(state, segment, lr)
            done(state.bucket)

    def _apply(self, state: _BucketState, updates: Tensor, lr: float) -> None:
        """Clip updates and scale them by the parameters' root mean squares."""
        sums = _sums_of_squares(state, updates)
        for parameter in state.parameters:
            rms_2U = (parameter.sums.view(sums) / parameter.unit_elements).sqrt()
            scale_U = -lr / (rms_2U[0] / self.config.update_clip).clamp(min=1.0)
            if self.config.multiply_by_parameter_scale:
                scale_U *= rms_2U[1].clamp(min=LEAST_SCALE)
            for piece in parameter.pieces:
                update = parameter.by_unit(piece, updates)
                scaled = update * scale_U[parameter.units(piece)].unsqueeze(1)
                parameter.by_unit(piece, state.bucket.master).add_(scaled)

    def state(self) -> Iterator[StateTensor]:
        """Means over the later and the earlier factored dimension ("row/", "col/" and the parameter's name), and
        unfactored moments ("second/")."""
        for state in self.states:
            for parameter in state.parameters:
                for name, means in zip(("row", "col"), parameter.factored or (), strict=False):
                    yield _state_of(f"{name}/{parameter.entry.spec.name}", state, means)
            for piece, second in state.second.items():
                spec, primary = piece.entry.spec, state.bucket.axes.primary
                yield StateTensor(f"second/{spec.name}", spec.shape, piece.box, second, primary)


def _update_means(state: _BucketState, segment: Tensor, decay: float) -> None:
    """Bring in this step's mean squares."""
    fresh = state.means.zeros(state.bucket.master)
    for parameter in state.parameters:
        for piece in parameter.pieces if parameter.factored else ():
            squares = piece.view(segment).square() + SQUARE_EPSILON
            for means in parameter.factored or ():
                length = parameter.entry.spec.shape[means.over]
                means.place.view(fresh)[means.of(piece)] += squares.sum(means.over) / length
    state.means.sum_(fresh)
    for axes, running in state.running.items():
        running.lerp_(fresh[axes], 1.0 - decay)


def _precondition(state: _BucketState, segment: Tensor, parameter: Parameter, decay: float) -> None:
    """Replace a parameter's gradient pieces by updates before clipping."""
    if parameter.factored is None:
        for piece in parameter.pieces:
            grad, second = piece.view(segment), state.second[piece]
            second.lerp_(grad.square() + SQUARE_EPSILON, 1.0 - decay)
            grad.mul_(second.rsqrt())
        return
    rows, cols = parameter.factored
    of_rows, of_cols = rows.place.view(state.running), cols.place.view(state.running)
    # the earlier factored dimension is where it was among those that `rows` keeps
    row_factor = (of_rows / of_rows.mean(cols.over, keepdim=True)).rsqrt_()
    col_factor = of_cols.rsqrt()
    for piece in parameter.pieces:
        grad = piece.view(segment)
        grad.mul_(row_factor[rows.of(piece)].unsqueeze(rows.over))
        grad.mul_(col_factor[cols.of(piece)].unsqueeze(cols.over))


def _sums_of_squares(state: _BucketState, updates: Tensor) -> Flats:
    """Of each unit's update and parameter, over all ranks that hold a part of it."""
    bucket = state.bucket
    sums = state.sums.zeros(bucket.master)
    for parameter in state.parameters:
        sums_2U = parameter.sums.view(sums)
        for piece in parameter.pieces:
            for of_one_U, flat in zip(sums_2U, (updates, bucket.master), strict=True):
                of_one_U[parameter.units(piece)] += parameter.by_unit(piece, flat).square().sum(1)
    state.sums.sum_(sums)
    return sums


def _state_of(name: str, state: _BucketState, means: Means) -> StateTensor:
    """Means are the same on all ranks they were summed over, so that the first of them speaks."""
    axes = state.bucket.axes
    summed: list[bool] = [state.means.topology.axis(axis).first for axis in means.place.axes]
    primary = axes.speaks and axes.data.first and all(summed)
    view: Tensor = means.place.view(state.running)
    return StateTensor(name, means.global_shape, means.box, view, primary)
