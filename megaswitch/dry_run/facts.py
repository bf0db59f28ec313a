"""What a played step comes to, as plain values."""

from dataclasses import asdict, replace
from typing import Any

from megaswitch.checkpoint.format import shard_name
from megaswitch.checkpoint.store import planned_size
from megaswitch.checkpoint.training import training_pieces
from megaswitch.dry_run.bubble import bubble
from megaswitch.dry_run.memory import KINDS, Memory
from megaswitch.dry_run.products import KINDS as PRODUCTS
from megaswitch.dry_run.products import PASSES, Products
from megaswitch.dry_run.routing import Routing
from megaswitch.dry_run.step import Played
from megaswitch.dry_run.watch import Watch
from megaswitch.model.units import param_specs
from megaswitch.params.derive import count
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.advice import advice, tokens_per_expert
from megaswitch.train.plan import tensors_of_rank
from megaswitch.train.system import System

Facts = dict[str, Any]


def facts_of(played: Played, routing: Routing) -> Facts:
    """Everything that `megaswitch dry-run` tells of a rank: parameters, bytes and FLOPs of one training step.

    memory: the highest of each kind (see `memory.KINDS`) over the step, bytes; `peak` of all together, and `at_peak`
    its kinds. collectives: see `messages.Traffic`. flops: by part of the model and pass. host: see
    `host_work`; `launched` by part of the step, `reads` by kind, each with their `total`. bubble: share of the
    pipeline's time. checkpoint: bytes of this rank's shard, and of all tensors. tokens_per_expert: of a pass, by stack.
    """
    system, watch = played.system, played.watch
    config, topology = system.config, system.topology
    return {
        "preset": config.model.preset,
        "world": topology.grid.world,
        "rank": topology.rank,
        "routing": routing,
        "layout": asdict(topology.grid),
        "microbatches": system.num_microbatches,
        "parameters": {"held": _held(system), "global": count(param_specs(config.model).values())},
        "memory": _memory(watch.memory),
        "collectives": _collectives(watch),
        "flops": _flops(watch.products),
        "host": watch.host.facts(),
        "bubble": bubble(config, system.num_microbatches),
        "checkpoint": _checkpoint(system),
        "tokens_per_expert": tokens_per_expert(config),
        "warnings": advice(config),
    }


def _held(system: System) -> dict[str, int]:
    """Parameters of this rank by part of the model."""
    parts = dict.fromkeys(count([]), 0)
    for name, param in system.buckets.params.items():
        parts[system.buckets.specs[name].part] += param.numel()
        parts["total"] += param.numel()
    return parts


def _memory(memory: Memory) -> Facts:
    return {
        **dict(zip(KINDS, memory.peak, strict=True)),
        "peak": sum(memory.at_peak),
        "at_peak": dict(zip(KINDS, memory.at_peak, strict=True)),
    }


def _collectives(watch: Watch) -> list[Facts]:
    return [
        {"axis": axis, "op": op, "count": traffic.count, "bytes": traffic.bytes, "wire": round(traffic.wire)}
        for (axis, op), traffic in sorted(watch.traffic.items())
    ]


def _flops(products: Products) -> Facts:
    found = {kind: {each: products.flops.get((kind, each), 0) for each in PASSES} for kind in PRODUCTS}
    return {**found, "total": {each: sum(of[each] for of in found.values()) for each in PASSES}}


def _checkpoint(system: System) -> Facts:
    """The shard that this rank writes, and the tensors of the shards of all ranks."""
    whole = tensors_of_rank(replace(system.config, layout=LayoutConfig()), 1, 0)
    return {
        "file": shard_name(system.topology.rank),
        "bytes": planned_size(training_pieces(system.buckets, system.optimizer)),
        "all": sum(tensor.view.numel() * tensor.view.element_size() for tensor in whole),
    }
