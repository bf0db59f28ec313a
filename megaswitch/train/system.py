"""Assembles what trains: from a configuration and a place in the grid to stages, buckets, executor and optimizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch

from megaswitch.comm.p2p import CHANNELS, Mailbox
from megaswitch.model.stage import Stage
from megaswitch.model.units import Unit, cut_stages, param_specs
from megaswitch.ops.compiled import compiled_ops
from megaswitch.ops.ops import Ops
from megaswitch.ops.registry import choose_ops
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.make import make_optimizer
from megaswitch.optim.optimizer import Optimizer
from megaswitch.pipeline.executor import Executor
from megaswitch.topology.grid import make_grid
from megaswitch.topology.nodes import node_problems
from megaswitch.topology.placement import place_of, stage_of
from megaswitch.topology.start import Place
from megaswitch.topology.topology import Topology, make_channels, make_topology
from megaswitch.train.config import RunConfig
from megaswitch.train.router_check import precision_problems
from megaswitch.utils.problem import refuse

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class System:
    """Everything of one rank that a step works with."""

    config: RunConfig
    topology: Topology
    buckets: Buckets
    executor: Executor
    ops: Ops
    optimizer: Optimizer

    @property
    def sequences(self) -> int:
        """Sequences of a global batch that this rank's data-parallel index takes."""
        return self.config.train.global_batch // self.topology.dp.size

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one step on each rank."""
        return self.sequences // self.config.train.micro_batch


def compute_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Type of weights and activations."""
    if config.train.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[config.train.dtype]


def owners_of(config: RunConfig, cuts: Sequence[Sequence[Unit]]) -> Mapping[str, tuple[int, ...]]:
    """Pipeline ranks that use each parameter, by name."""
    owners: dict[str, set[int]] = {}
    for stage, units in enumerate(cuts):
        for name in param_specs(config.model, units):
            owners.setdefault(name, set()).add(place_of(config.layout.v_placement, config.layout.pp, stage)[0])
    return {name: tuple(sorted(ranks)) for name, ranks in owners.items()}


def build(config: RunConfig, place: Place, *, first_sentinel: int = 0, initialise: bool = True) -> System:
    """Stages, storage and optimizer of one rank; weights are drawn unless a checkpoint will bring them."""
    dtype = compute_dtype(config, place.device)
    refuse(list(precision_problems(config.model, bfloat16=dtype is torch.bfloat16)))
    ops = choose_ops(config.ops.backend, place.device)
    if config.train.compile != "none" and place.device.type != "meta":  # a played step has nothing to run
        ops = compiled_ops(ops, config.train.compile, place.device)
    timeout = timedelta(seconds=config.run.timeout)
    grid = make_grid(config.layout, place.world)
    refuse(node_problems(config.layout, place.world, place.local_world))
    topology = make_topology(
        grid,
        place.rank,
        place.device,
        sequence_parallel=config.layout.sequence_parallel,
        timeout=timeout,
    )
    cuts = cut_stages(config.model, config.layout)
    layout, pp = config.layout, topology.pp
    own = [cuts[stage_of(layout.v_placement, pp.size, pp.rank, chunk)] for chunk in range(layout.num_chunks)]
    buckets = Buckets(
        param_specs(config.model, [unit for units in own for unit in units]),
        owners_of(config, cuts),
        topology,
        dtype,
        zero=config.optim.zero,
        narrow_grads=config.optim.grad_dtype == "bfloat16",
        masters_only=config.optim.master == "only",
        bucket_elements=config.optim.bucket_elements,
        timeout=timeout,
    )
    if initialise:
        buckets.initialise(config.train.seed)
    chunks = [Stage(config.model, units, buckets.params, topology, first_sentinel, dtype) for units in own]
    mailbox = Mailbox(pp, make_channels(pp, CHANNELS, timeout))
    executor = Executor(
        config.model, chunks, cuts, topology, buckets, mailbox, products=ops.products, v_placement=layout.v_placement
    )
    return System(config, topology, buckets, executor, ops, make_optimizer(buckets, config.optim, ops))
