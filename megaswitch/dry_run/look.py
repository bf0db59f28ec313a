"""Plays ranks and keeps what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megaswitch.dry_run.facts import Facts, facts_of
from megaswitch.dry_run.memory import Moment
from megaswitch.dry_run.picture import picture
from megaswitch.dry_run.ranks import chosen_ranks, worst
from megaswitch.dry_run.routing import Routing
from megaswitch.dry_run.step import play
from megaswitch.topology.grid import make_grid
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.utils.problem import refuse


@dataclass(frozen=True)
class Seen:
    """A rank: what it comes to, and its memory's course over the step."""

    facts: Facts
    course: Sequence[Moment]


def look(config: RunConfig, world: int, names: str, routing: Routing) -> list[Seen]:
    """Play the ranks that `names` names (see `ranks.chosen_ranks`), each once.

    Raises UserError with all that is wrong with the configuration in a world of this size, or with a name.
    """
    refuse(check(config, world))
    grid = make_grid(config.layout, world)
    seen: dict[int, Seen] = {}

    def see(rank: int) -> Seen:
        if rank not in seen:
            played = play(config, world, rank, routing)
            seen[rank] = Seen(facts_of(played, routing), played.watch.memory.course)
        return seen[rank]

    def peak_of(rank: int) -> int:
        peak: int = see(rank).facts["memory"]["peak"]
        return peak

    chosen = chosen_ranks(names, grid)
    return [see(worst(config, grid, peak_of) if rank is None else rank) for rank in chosen]


def draw(seen: Seen, form: Literal["svg", "png"]) -> bytes:
    """The picture of a rank's memory."""
    return picture(seen.facts, seen.course, form)
