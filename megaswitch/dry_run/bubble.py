"""How much of a step the pipeline's ranks wait, with stages as long as their FLOPs."""

from megaswitch.model.flops import unit_flops
from megaswitch.model.units import Unit, cut_stages
from megaswitch.pipeline.schedule import make_schedule
from megaswitch.pipeline.simulate import Costs, simulate
from megaswitch.train.config import RunConfig


def bubble(config: RunConfig, num_microbatches: int) -> float:
    """Share of all ranks' time that is waiting; messages take none, and a stage's backward takes twice its forward
    (three times where its blocks are recomputed as a whole), but for the head, whose three products are its forward's
    (see `layers/cross_entropy.py`)."""
    layout = config.layout
    cuts = cut_stages(config.model, layout)
    forward = [sum(_flops(config, unit) for unit in units) for units in cuts]
    again = [sum(_flops(config, unit) for unit in units if _recomputed(config, unit)) for units in cuts]
    head = [sum(_flops(config, unit) for unit in units if unit.kind == "norm") for units in cuts]
    weights = [f - h for f, h in zip(forward, head, strict=True)]
    inputs = [w + more for w, more in zip(weights, again, strict=True)]
    costs = Costs([f + 2.0 * h for f, h in zip(forward, head, strict=True)], inputs, weights)
    schedule = make_schedule(layout.schedule, layout.pp, layout.num_chunks, num_microbatches)
    return simulate(schedule, costs, v=layout.v_placement).bubble


def _flops(config: RunConfig, unit: Unit) -> float:
    return unit_flops(config.model, unit.kind, unit.stack, unit.layer, router=True)


def _recomputed(config: RunConfig, unit: Unit) -> bool:
    return unit.kind == "block" and config.train.recompute_of(unit.stack) == "full"
