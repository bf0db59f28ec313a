"""What a step sends between processes: counted, and by the layers' closed formulas.

Bytes are those of whole tensors, summed over all processes (`dry_run.messages.Traffic`). S, T tokens of encoder and
decoder (padded to a multiple of tp), D d_model, E experts, s bytes of a number in the step's type.
"""

from collections import Counter
from math import prod
from typing import Any

from megaswitch.dry_run.watch import Watch
from megaswitch.model.micro_batch import padded_length
from megaswitch.model.record import StepRecord
from megaswitch.model.stage import carried_after
from megaswitch.model.units import cut_stages, param_specs
from megaswitch.params.derive import local_box
from megaswitch.topology.grid import Grid, make_grid
from megaswitch.topology.placement import place_of
from megaswitch.train.config import RunConfig
from megaswitch.train.step import train_step
from megaswitch.train.system import System

Bytes = Counter[tuple[str, str]]
"""By axis and operation."""
_INDEX, _WIDE = 8, 4  # bytes of an index, and of a float32


def watched_step(system: System, batches: Any, step: int) -> tuple[StepRecord, dict[tuple[str, str], int]]:
    """A step of this process, and the bytes that it put into collectives."""
    watch = Watch(played=False)
    with watch.watching():
        watch.start()
        result = train_step(system, batches, step)
        system.buckets.await_weights(system.buckets.params)
    return result.record, {key: traffic.bytes for key, traffic in watch.traffic.items()}


def formula(config: RunConfig, world: int, record: StepRecord, size: int) -> Bytes:
    """Bytes of the collectives that grow with the model; what is left out is some numbers a token or less."""
    grid = make_grid(config.layout, world)
    found = _gradients(config, grid, size)
    if grid.tp > 1:
        found += _regions(config, grid, size)
    if grid.ep > 1:
        found += _tokens(config, grid, record, size)
    if grid.pp > 1:
        found += _borders(config, size) + _shared(config)
    return found


def _gradients(config: RunConfig, grid: Grid, size: int) -> Bytes:
    """Each gradient is reduced once and each weight gathered once (ZeRO), over the axis that replicates it."""
    found: Bytes = Counter()
    owners = _owners(config)
    for name, spec in param_specs(config.model).items():
        axis = spec.data_axis
        if grid.size(axis) == 1:
            continue
        ranks = [rank for rank in range(grid.world) if grid.index(rank, "pp") in owners[name]]
        elements = sum(prod(local_box(spec, grid, rank).shape) for rank in ranks)
        found[axis, "reduce_scatter"] += _WIDE * elements
        found[axis, "all_gather"] += size * elements
    return found


def _owners(config: RunConfig) -> dict[str, set[int]]:
    layout, owners = config.layout, {}
    for stage, units in enumerate(cut_stages(config.model, layout)):
        for name in param_specs(config.model, units):
            owners.setdefault(name, set()).add(place_of(layout.v_placement, layout.pp, stage)[0])
    return owners


def _lengths(config: RunConfig, tp: int) -> tuple[int, int]:
    return padded_length(config.model.encoder_length, tp), padded_length(config.model.decoder_length, tp)


def _regions(config: RunConfig, grid: Grid, size: int) -> Bytes:
    """Tensor-parallel regions with the sequence split outside: entered by an all-gather and left by a reduce-scatter,
    and the other way round backward. Encoder and decoder have as many blocks, and as many sparse ones."""
    model, (S, T) = config.model, _lengths(config, grid.tp)
    sparse = model.num_sparse_encoder_layers if model.num_experts else 0
    blocks, dense = model.num_encoder_layers, model.num_encoder_layers - sparse
    encoder, decoder = blocks + dense, 2 * blocks + dense
    entered = S * (encoder + blocks) + T * (decoder + 1)  # with the memory in each decoder block; the head
    left = S * (encoder + 1) + T * (decoder + 1)  # with both embeddings
    sequences = grid.tp * config.train.global_batch
    through = (entered + left) * sequences * model.d_model * size
    choices = sequences * sparse * (S + T) * _INDEX
    return Counter({("tp", "all_gather"): through + choices, ("tp", "reduce_scatter"): through})


def _tokens(config: RunConfig, grid: Grid, record: StepRecord, size: int) -> Bytes:
    """Kept tokens to their experts and back, forward and backward, and how many there are."""
    model = config.model
    rows = sum(round(layer.routed - layer.dropped) for layer in record.layers.values())
    passes = len(record.layers) * config.train.global_batch // config.train.micro_batch * grid.tp
    return Counter({("ep", "all_to_all"): 4 * rows * model.d_model * size + passes * model.num_experts * _INDEX})


def _shared(config: RunConfig) -> Bytes:
    """Gradients of what several pipeline ranks use (the table, relative biases) are summed over them, after those of
    data-parallel ranks."""
    found: Bytes = Counter()
    for name, owners in _owners(config).items():
        if len(owners) > 1:
            elements = param_specs(config.model)[name].size
            found[f"pp{','.join(map(str, sorted(owners)))}", "all_reduce"] += _WIDE * elements * len(owners)
    return found


def _borders(config: RunConfig, size: int) -> Bytes:
    """Each carried tensor crosses each border between ranks once in each direction."""
    model, layout = config.model, config.layout
    tokens = {"x": model.encoder_length, "memory": model.encoder_length, "y": model.decoder_length}
    cuts = cut_stages(model, layout)
    ranks = [place_of(layout.v_placement, layout.pp, stage)[0] for stage in range(len(cuts))]
    crossed = [carried_after(cuts[i][-1]) for i in range(len(cuts) - 1) if ranks[i] != ranks[i + 1]]
    each = sum(tokens[name] for names in crossed for name in names) * model.d_model * size
    both = 2 * config.train.global_batch * each
    return Counter({("pp", "send"): both, ("pp", "receive"): both})
