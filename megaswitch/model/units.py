"""The model as one list of units, and the cut of that list into pipeline stages.

A stage holds at least one block; embeddings and norms stay with the block they stand next to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal

from megaswitch.layers.block import SPARSE, block_specs, sublayers
from megaswitch.layers.embedding import embedding_specs
from megaswitch.layers.head import head_specs
from megaswitch.layers.norm import norm_specs
from megaswitch.layers.relative_bias import relative_bias_specs
from megaswitch.model.config import STACKS, ModelConfig, Stack
from megaswitch.model.flops import unit_flops
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.config import LayoutConfig
from megaswitch.utils.problem import Problem


@dataclass(frozen=True)
class Unit:
    """One piece of the model: a stack's "embed", a block, or its final "norm" (the decoder's with the head)."""

    kind: Literal["embed", "block", "norm"]
    stack: Stack
    layer: int = 0


def stack_units(config: ModelConfig, stack: Stack) -> list[Unit]:
    """Units of one stack, in order."""
    blocks = [Unit("block", stack, i) for i in range(config.num_layers(stack))]
    return [Unit("embed", stack), *blocks, Unit("norm", stack)]


def all_units(config: ModelConfig) -> list[Unit]:
    """Units of the whole model, in order."""
    return [unit for stack in STACKS for unit in stack_units(config, stack)]


def unit_specs(config: ModelConfig, unit: Unit) -> list[ParamSpec]:
    """Parameters a unit uses; shared ones (tied table, relative bias) are named by each of their users."""
    if unit.kind == "embed":
        return embedding_specs(config)
    if unit.kind == "block":
        bias = relative_bias_specs(f"{unit.stack}.relative_bias", config)
        return [*bias, *block_specs(config, unit.stack, unit.layer)]
    norm = norm_specs(f"{unit.stack}.norm", config)
    return norm if unit.stack == "encoder" else [*norm, *head_specs(config)]


def param_specs(config: ModelConfig, units: Sequence[Unit] | None = None) -> dict[str, ParamSpec]:
    """All parameters of the units (default: of the whole model) by name, each once, in the order of first use."""
    chosen = all_units(config) if units is None else units
    return {spec.name: spec for unit in chosen for spec in unit_specs(config, unit)}


def switch_layers(config: ModelConfig) -> list[Unit]:
    """The blocks with Switch layers: encoder first, in order."""
    return [u for u in all_units(config) if u.kind == "block" and config.is_sparse(u.stack, u.layer)]


def switch_names(config: ModelConfig) -> list[tuple[Unit, str]]:
    """Every sparse sublayer of the model, as its block and its name in the record, in the record's order."""
    return [
        (unit, f"{unit.stack}.{unit.layer}" if sublayer == "switch" else f"{unit.stack}.{unit.layer}.attention")
        for unit in switch_layers(config)
        for sublayer in sublayers(config, unit.stack, unit.layer)
        if sublayer in SPARSE
    ]


def _glued(units: Sequence[Unit]) -> list[list[Unit]]:
    """Runs of units with one block each: embeddings go with the next block, norms with the one before."""
    runs: list[list[Unit]] = []
    waiting: list[Unit] = []
    for unit in units:
        if unit.kind == "norm" and runs:
            runs[-1].append(unit)
        elif unit.kind == "block":
            runs.append([*waiting, unit])
            waiting = []
        else:
            waiting.append(unit)
    return runs


def balance(costs: Sequence[float], parts: int) -> list[int]:
    """Lengths of `parts` non-empty runs of `costs` whose dearest run is as cheap as possible."""
    total = [0.0, *accumulate(costs)]
    best: list[list[tuple[float, list[int]]]] = [[(total[i], [i]) for i in range(len(costs) + 1)]]
    for used in range(1, parts):
        row: list[tuple[float, list[int]]] = []
        for end in range(len(costs) + 1):
            options = [
                (max(best[-1][mid][0], total[end] - total[mid]), [*best[-1][mid][1], end - mid])
                for mid in range(used, end)
            ]
            row.append(min(options, default=(float("inf"), [])))
        best.append(row)
    return best[-1][len(costs)][1]


def _cut(units: Sequence[Unit], lengths: Sequence[int]) -> list[list[Unit]]:
    """Stages of so many blocks each."""
    runs = iter(_glued(units))
    return [[unit for run in islice(runs, length) for unit in run] for length in lengths]


def _balanced(config: ModelConfig, units: Sequence[Unit], parts: int) -> list[list[Unit]]:
    costs = [stage_flops(config, run) for run in _glued(units)]
    return _cut(units, balance(costs, parts))


def stage_flops(config: ModelConfig, units: Sequence[Unit]) -> float:
    """Forward FLOPs of a stage for one sequence, as `model.flops` counts them."""
    return sum(unit_flops(config, u.kind, u.stack, u.layer) for u in units)


def cut_stages(config: ModelConfig, layout: LayoutConfig) -> list[list[Unit]]:
    """The units of each pipeline stage; where a stage lies is said by `topology.placement`.

    By hand where `layout.stages` says so. Otherwise balanced by FLOPs: with an even number of chunks each stack for
    itself, so that a rank holds as many stages of the encoder as of the decoder, else the whole list at once.
    """
    if layout.stage_blocks:
        return _cut(all_units(config), layout.stage_blocks)
    if layout.num_chunks % 2 == 0:
        half = layout.num_stages // 2
        return [stage for stack in STACKS for stage in _balanced(config, stack_units(config, stack), half)]
    return _balanced(config, all_units(config), layout.num_stages)


def stage_problems(config: ModelConfig, layout: LayoutConfig) -> list[Problem]:
    """Whether some stage would be empty, or the stages given by hand are not those of this model and layout."""
    blocks = {stack: config.num_layers(stack) for stack in STACKS}
    if layout.stages.strip():
        return _by_hand_problems(layout, sum(blocks.values()))
    if layout.num_chunks % 2 == 0:
        need = layout.num_stages // 2
        short = [f"{stack} has {n} blocks for {need} stages" for stack, n in blocks.items() if n < need]
    else:
        total = sum(blocks.values())
        short = [f"the model has {total} blocks for {layout.num_stages} stages"] if total < layout.num_stages else []
    remedy = "choose a smaller layout.pp or fewer layout.chunks, so that each stage holds a block"
    return [Problem("layout.pp", f"leaves a stage empty: {text}", remedy) for text in short]


def _by_hand_problems(layout: LayoutConfig, total: int) -> list[Problem]:
    remedy = f"give {layout.num_stages} numbers of at least 1 with commas between them, {total} together, or nothing"
    try:
        given = layout.stage_blocks
    except ValueError:
        return [Problem("layout.stages", f"is {layout.stages!r}, which is no list of whole numbers", remedy)]
    wrong = [f"has {len(given)} stages, but layout.pp x chunks = {layout.num_stages}"] * (
        len(given) != layout.num_stages
    )
    wrong += ["leaves a stage without a block"] * (min(given) < 1)
    wrong += [f"has {sum(given)} blocks, but the model has {total}"] * (sum(given) != total)
    return [Problem("layout.stages", f"= {layout.stages} {text}", remedy) for text in wrong]
