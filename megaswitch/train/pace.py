"""Compares how busy the ranks were, and names those that the others wait for."""

import logging
from collections import Counter
from statistics import median_low

import torch

from megaswitch.comm.collectives import all_gather
from megaswitch.topology.topology import Axis
from megaswitch.utils.host import host_read

log = logging.getLogger(__name__)

PHASES = ("data", "step", "evaluation", "save")
_FEWEST = 10
"""Samples below which a share says nothing."""


def shares(samples: Counter[str]) -> list[float]:
    """What part of the time this rank was busy with each of PHASES: neither waiting for others nor elsewhere."""
    total = sum(samples.values())
    return [samples[phase] / total if total >= _FEWEST else float("nan") for phase in PHASES]


def stragglers(rows: list[list[float]], factor: float) -> dict[int, str]:
    """Ranks that were so many times as busy as the median rank, with the phase in which they were it most.

    In a step all wait for the slowest: it is the one that waits least. A rank that waits half of its time could be
    twice as slow without anybody's notice, so that its share is looked at and not its seconds.
    """
    busy = [sum(row) for row in rows]
    if any(share != share for share in busy):
        return {}
    middle = max(median_low(busy), 1e-3)
    usual = [median_low(column) for column in zip(*rows, strict=True)]
    found = {}
    for rank, row in enumerate(rows):
        if busy[rank] > factor * middle:
            _, phase = max((own - most, name) for own, most, name in zip(row, usual, PHASES, strict=True))
            found[rank] = phase
    return found


def tell_stragglers(samples: Counter[str], world: Axis, device: torch.device, factor: float, step: int) -> None:
    """A warning on the first rank that names the stragglers of the last steps; a collective of all."""
    own = torch.tensor(shares(samples), device=device, dtype=torch.float64)
    rows = host_read("pace", all_gather(own, world).view(world.size, len(PHASES)))
    if world.rank != 0:
        return
    for rank, phase in stragglers(rows, factor).items():
        others = 100 * median_low(sum(row) for row in rows)
        log.warning(
            "step %d: rank %d holds up the others: busy %.0f%% of the time where the median is %.0f%%, most of all "
            "with its %s",
            *(step, rank, 100 * sum(rows[rank]), others, phase),
        )

