"""Runs a small model for a few steps in a forked world and brings loss, gradients and weights together.

Agreement (design): per tensor max|a - b| / max|a|, per scalar |a - b| / |a|, never elementwise.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from megaswitch.model.config import ModelConfig
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import StateTensor, master_state
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.start import Place
from megaswitch.train.batches import read
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.step import compute_gradients, total_loss, train_step
from megaswitch.train.system import System, build

TOLERANCE = 1e-9
STEPS = 3


class Sample(NamedTuple):
    """What a source of samples gives."""

    encoder_ids_BS: NDArray[np.int64]
    decoder_ids_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    samples_B: NDArray[np.int64]
    encoder_segments_BS: NDArray[np.int64] | None = None
    decoder_segments_BT: NDArray[np.int64] | None = None


class RandomSource:
    """Random ids as a function of the sample's number; every fifth sample ends in padding."""

    def __init__(self, model: ModelConfig) -> None:
        self.model = model

    def batch(self, first: int, count: int) -> Sample:
        rows = [self._row(index) for index in range(first, first + count)]
        encoder, targets = np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])
        decoder = np.concatenate([np.zeros((count, 1), np.int64), targets[:, :-1]], 1)
        return Sample(encoder, decoder, targets, np.arange(first, first + count))

    def _row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        model, rng = self.model, np.random.default_rng(1000 + index)
        encoder = rng.integers(2, model.vocab_size, model.encoder_length)
        targets = rng.integers(2, model.vocab_size, model.decoder_length)
        if index % 5 == 0:
            encoder[-3:], targets[-2:] = 0, 0
        return encoder, targets


def small(**model: Any) -> RunConfig:
    """A float64 configuration of 4 + 4 blocks that drops tokens; lengths that tp does not divide."""
    base = ModelConfig(
        vocab_size=61,
        d_model=16,
        d_ff=24,
        d_kv=4,
        num_heads=4,
        num_encoder_layers=4,
        num_decoder_layers=4,
        num_experts=8,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        encoder_length=12,
        decoder_length=7,
        capacity_factor=1.0,
        min_capacity=1,
        init_scale=1.0,
        router_init_std=0.5,
    )
    return RunConfig(
        model=replace(base, **model),
        train=TrainConfig(steps=10, global_batch=8, micro_batch=1, seed=3, dtype="float64"),
        optim=OptimConfig(min_dim_to_factor=16, warmup_steps=100),
    )


@dataclass(frozen=True)
class Outcome:
    """What a run came to: scalars of each step, the first step's gradients, the last weights."""

    scalars: dict[str, list[float]]
    grads: dict[str, NDArray[np.float64]]
    weights: dict[str, NDArray[np.float64]]


Slices = list[tuple[str, tuple[int, ...], tuple[slice, ...], NDArray[np.float64]]]


def slices_of(tensors: Iterable[StateTensor]) -> Slices:
    """Name, global shape, place and values of the tensors that this rank speaks for."""
    return [(t.name, t.global_shape, t.box.slices, t.view.double().numpy().copy()) for t in tensors if t.primary]


def whole(ranks: Iterable[Slices]) -> dict[str, NDArray[np.float64]]:
    """Global tensors from the slices of all ranks, each element given exactly once."""
    tensors: dict[str, NDArray[np.float64]] = {}
    times: dict[str, NDArray[np.int64]] = {}
    for name, shape, place, values in (item for rank in ranks for item in rank):
        tensors.setdefault(name, np.zeros(shape))[place] = values
        times.setdefault(name, np.zeros(shape, np.int64))[place] += 1
    for name, count in times.items():
        assert (count == 1).all(), f"{name}: some elements are held by {count.min()} to {count.max()} speakers"
    return tensors


def gradients_of(system: System) -> Slices:
    """The reduced gradients that this rank speaks for."""
    tensors = [
        StateTensor(p.entry.spec.name, p.entry.spec.shape, p.box, p.view(b.grad_segment), b.axes.primary)
        for b, p in system.buckets.pieces()
    ]
    return slices_of(tensors)


def place() -> Place:
    """This forked rank's place."""
    size = dist.get_world_size()
    return Place(dist.get_rank(), size, dist.get_rank(), size, torch.device("cpu"))


def run_rank(config: RunConfig, steps: int = STEPS) -> tuple[dict[str, list[float]], Slices, Slices]:
    """One rank's steps."""
    system, source = build(config, place()), RandomSource(config.model)
    record = compute_gradients(system, read(system, source, 0), 0)
    grads = gradients_of(system)
    scalars: dict[str, list[float]] = {"loss": [total_loss(system, record)], "grad_norm": [record.grad_norm]}
    for step in range(steps):
        result = train_step(system, read(system, source, step * config.train.global_batch), step)
        parts = {"loss": result.loss, "grad_norm": result.grad_norm, "aux": result.record.aux}
        parts |= {"nll": result.record.mean_nll, "z": result.record.z, "dropped": result.record.dropped_share}
        for name, layer in result.record.layers.items():
            parts |= {f"{name}.aux": layer.aux, f"{name}.z": layer.z, f"{name}.entropy": layer.entropy}
        for name, value in parts.items():
            scalars.setdefault(name, []).append(value)
    return scalars, grads, slices_of(master_state(system.buckets))


def outcome(world: Callable[..., list[Any]], n: int, config: RunConfig, **layout: Any) -> Outcome:
    """The run of `config` on n ranks in the given layout."""
    config = replace(config, layout=LayoutConfig(**layout))
    ranks = world(n, run_rank, config)
    for other in ranks[1:]:
        assert other[0] == ranks[0][0], "ranks report different numbers"
    return Outcome(ranks[0][0], whole(r[1] for r in ranks), whole(r[2] for r in ranks))


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """max|a - b| / max|a|."""
    largest = float(np.abs(a).max())
    return float(np.abs(a - b).max()) / largest if largest else float(np.abs(b).max())


def assert_agree(serial: Outcome, parallel: Outcome, tolerance: float = TOLERANCE) -> None:
    """Everything within the tolerance; the message names what is not."""
    assert serial.scalars.keys() == parallel.scalars.keys()
    far = []
    for name, values in serial.scalars.items():
        for step, (a, b) in enumerate(zip(values, parallel.scalars[name], strict=True)):
            if abs(a - b) > tolerance * max(abs(a), 1e-30):
                far.append(f"{name} of step {step}: {a} and {b}")
    for kind in ("grads", "weights"):
        one, other = getattr(serial, kind), getattr(parallel, kind)
        assert one.keys() == other.keys()
        far += [f"{kind} {n}: {distance(one[n], other[n]):.2e}" for n in one if distance(one[n], other[n]) > tolerance]
    assert not far, "\n".join(far)
