"""What a pipeline rank can do, and what must have been done before.

F of a stage needs F of the stage before it. A backward needs its own F and the gradients from the stage after it,
whether that rank does its backward at once (B) or in two (I, W). W needs its own I.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What is computed: a forward pass; a backward pass; or, for a backward pass in two, first the gradients of the
    inputs, which the stage before waits for, and some time later those of the weights."""

    FORWARD = "F"
    BACKWARD = "B"
    INPUT = "I"
    WEIGHT = "W"


@dataclass(frozen=True)
class Action:
    """One pass of one micro-batch through one of the rank's chunks."""

    kind: Kind
    microbatch: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.kind.value}{self.microbatch}.{self.chunk}"


Schedule = list[list[Action]]
"""The actions of each rank."""


def needs(action: Action, stage: int, num_stages: int) -> list[tuple[Kind, int, int]]:
    """What must have ended before an action of a stage can begin: (kind, micro-batch, stage). Where a B is named an
    I does as well, and the other way round: both bring the gradients."""
    m = action.microbatch
    if action.kind is Kind.FORWARD:
        return [(Kind.FORWARD, m, stage - 1)] if stage > 0 else []
    if action.kind is Kind.WEIGHT:
        return [(Kind.INPUT, m, stage)]
    own = [(Kind.FORWARD, m, stage)]
    return [*own, (action.kind, m, stage + 1)] if stage < num_stages - 1 else own
