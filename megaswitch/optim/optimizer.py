"""What every optimizer is to the training step and to checkpoints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megaswitch.optim.bucket import Bucket
from megaswitch.optim.buckets import Buckets
from megaswitch.params.boxes import Box


@dataclass(frozen=True)
class StateTensor:
    """A part of a named global tensor that this rank holds, as a view that can be read and written.

    `primary` says whether this rank is the one that saves it; every holder loads it.
    """

    name: str
    global_shape: tuple[int, ...]
    box: Box
    view: Tensor
    primary: bool


Done = Callable[[Bucket], None]


def nothing(bucket: Bucket) -> None:
    """Nothing is done with an updated bucket."""


class Optimizer(Protocol):
    """Updates the masters of all buckets from their gradient segments."""

    def step(self, lr: float, count: int, done: Done = nothing) -> None:
        """Update number `count` (from 1); calls `done` with each bucket whose masters are updated; may overwrite the
        gradient segments."""
        ...

    def state(self) -> Iterator[StateTensor]:
        """Everything that has to be saved besides the masters."""
        ...


def master_state(buckets: Buckets) -> Iterator[StateTensor]:
    """The masters, named "weight/" and the parameter's name."""
    for bucket, piece in buckets.pieces():
        spec, view = piece.entry.spec, piece.view(bucket.master)
        yield StateTensor(f"weight/{spec.name}", spec.shape, piece.box, view, bucket.axes.primary)
