"""What the host would read of a step that is only played: how many tokens go where, and numbers that are finite.

"balanced": every expert is wanted by as many tokens as any other. "worst", for memory: every token that an expert of
this rank has a slot for comes here, and this rank's own tokens all find a slot somewhere.

R ranks on the ep axis, X experts of this rank, E experts.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, Literal

from torch import Tensor

from megaswitch.model.config import Stack
from megaswitch.model.micro_batch import padded_length
from megaswitch.topology.grid import Grid
from megaswitch.train.advice import served_choices
from megaswitch.train.config import RunConfig

Routing = Literal["balanced", "worst"]


def dispatched_tokens(config: RunConfig, grid: Grid, rank: int, stack: Stack) -> int:
    """Tokens of one micro-batch, without what tp pads, that `rank` sends to experts: with etp all of its tp group's,
    else its own part of each sequence."""
    length = config.model.length(stack)
    if grid.etp == 1 and grid.tp > 1:
        part = padded_length(length, grid.tp) // grid.tp
        length = max(0, min(part, length - part * grid.index(rank, "tp")))
    return config.train.micro_batch * length


class Answers:
    """Answers `utils.host.host_read` in place of a device."""

    def __init__(
        self, config: RunConfig, grid: Grid, rank: int, routing: Routing, stack: Callable[[], Stack]
    ) -> None:
        """`stack` says whose layer is being played."""
        self.config, self.grid, self.rank, self.routing, self.stack = config, grid, rank, routing, stack
        self._known: dict[Stack, list[list[list[int]]]] = {}

    def __call__(self, kind: str, tensor: Tensor) -> list[Any]:
        if kind == "expert_splits":
            stack = self.stack()
            if stack not in self._known:
                self._known[stack] = self._splits(stack)
            return self._known[stack]
        return _zeros(tuple(tensor.shape), tensor.dtype.is_floating_point)

    def _splits(self, stack: Stack) -> list[list[list[int]]]:
        """[2, R, X]: rows for each expert of each rank, and rows from each rank for each of this rank's experts."""
        ranks, total = self.grid.ranks(self.rank, "ep"), self.config.model.num_experts
        experts, own = total // len(ranks), ranks.index(self.rank)
        rows = [self._rows(rank, stack) for rank in ranks]
        if self.routing == "worst":
            received = [self._hot(n, stack, experts) for n in rows]
            return [self._around(received[own], rows[own], own, len(ranks)), received]
        starts = list(accumulate(rows, initial=0))
        here = range(own * experts, (own + 1) * experts)
        sent = _spread(rows[own], starts[own], total, range(total))
        received = [_spread(n, start, total, here) for n, start in zip(rows, starts, strict=False)]
        return [[sent[i : i + experts] for i in range(0, total, experts)], received]

    def _rows(self, rank: int, stack: Stack) -> int:
        """Rows that a rank sends when experts are wanted alike: capacity drops some only below a factor of 1."""
        model = self.config.model
        rows = dispatched_tokens(self.config, self.grid, rank, stack) * served_choices(model)
        slots = self._slots(stack)
        return rows if slots is None else min(rows, slots * model.num_experts)

    def _slots(self, stack: Stack) -> int | None:
        """Slots of an expert for the tokens of one rank's micro-batch: of a group that tp ranks share, their share."""
        model, batch = self.config.model, self.config.train.micro_batch
        size = model.group_size(stack)
        slots = model.slots(model.length(stack) * size, training=True)
        if slots is None:
            return None
        return -(-slots * (batch // size) // (self.grid.tp if self.grid.etp == 1 else 1))

    def _hot(self, rows: int, stack: Stack, experts: int) -> list[int]:
        """[X]: of a rank's rows those for this rank's experts when they are wanted by all."""
        served, slots = served_choices(self.config.model), self._slots(stack)
        most = rows // served * min(served, experts)
        return _spread(most if slots is None else min(most, slots * experts), 0, experts, range(experts))

    def _around(self, here: list[int], rows: int, own: int, ranks: int) -> list[list[int]]:
        """[R, X]: this rank's rows when `here` go to its own experts, and the rest to all others alike."""
        experts = len(here)
        others = max(1, (ranks - 1) * experts)
        rest = iter(_spread(rows - sum(here), 0, others, range(others)))
        return [here if i == own else [next(rest) for _ in range(experts)] for i in range(ranks)]


def _spread(rows: int, start: int, experts: int, which: range) -> list[int]:
    """How many of consecutive rows go to each of the experts `which` when they are dealt out to all in turn, the first
    to expert `start`."""
    even, more = divmod(rows, experts)
    return [even + ((i - start) % experts < more) for i in which]


def _zeros(shape: tuple[int, ...], floating: bool) -> list[Any]:
    """Nested lists of zeros."""
    zero: Any = 0.0 if floating else 0
    if len(shape) == 1:
        return [zero] * shape[0]
    return [_zeros(shape[1:], floating) for _ in range(shape[0])]
