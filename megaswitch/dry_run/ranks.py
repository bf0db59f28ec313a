"""Which ranks of a world to look at."""

import logging
from collections.abc import Callable

from megaswitch.dry_run.routing import dispatched_tokens
from megaswitch.model.config import STACKS
from megaswitch.params.derive import shard_range
from megaswitch.topology.grid import Grid
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import UserError

log = logging.getLogger(__name__)


def distinct(config: RunConfig, grid: Grid) -> list[int]:
    """One rank of each sort: of every pipeline position, those tp ranks that differ in their shard of the vocabulary or
    in the tokens they send. Along the data and expert axes all ranks hold and do alike."""
    chosen: dict[tuple[int, ...], int] = {}
    for rank in range(0, grid.world):
        if grid.index(rank, "dp") == 0:
            start, stop = shard_range(config.model.vocab_size, grid.tp, grid.index(rank, "tp"))
            sends = [dispatched_tokens(config, grid, rank, stack) for stack in STACKS]
            chosen.setdefault((grid.index(rank, "pp"), stop - start, *sends), rank)
    return list(chosen.values())


def chosen_ranks(names: str, grid: Grid) -> list[int | None]:
    """Ranks named as "first", "last", numbers, or "worst" (None), separated by commas."""
    found: list[int | None] = []
    for name in names.split(","):
        rank = {"first": 0, "last": grid.world - 1}.get(name, int(name) if name.isdecimal() else -1)
        if name == "worst":
            found.append(None)
        elif 0 <= rank < grid.world:
            found.append(rank)
        else:
            raise UserError(
                f"{name!r} is no rank of a world of {grid.world}; give first, last, worst or 0 to {grid.world - 1}"
            )
    return found


def worst(config: RunConfig, grid: Grid, peak_of: Callable[[int], int]) -> int:
    """The rank with the highest peak."""
    peaks = {}
    ranks = distinct(config, grid)
    for rank in ranks:
        peaks[rank] = peak_of(rank)
        log.info("rank %d, %d of %d sorts: peak %.2f GB", rank, len(peaks), len(ranks), peaks[rank] / 1e9)
    return max(peaks, key=lambda rank: peaks[rank])
