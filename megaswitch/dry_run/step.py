"""A watched training step of one rank: the second of two, so that all that stays from step to step is there."""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaswitch.dry_run.memory import Kind
from megaswitch.dry_run.routing import Answers, Routing
from megaswitch.dry_run.watch import Watch
from megaswitch.model.config import STACKS, Stack
from megaswitch.model.micro_batch import Ids, Sequences
from megaswitch.optim.optimizer import master_state
from megaswitch.topology.fake import fake_world
from megaswitch.topology.grid import make_grid
from megaswitch.topology.start import Place
from megaswitch.topology.topology import own_groups
from megaswitch.train.config import RunConfig
from megaswitch.train.step import train_step
from megaswitch.train.system import System, build
from megaswitch.utils.host import Answer, answered_by


@dataclass(frozen=True)
class Full:
    """A micro-batch of full sequences (see `model.micro_batch.Sequences`); which tokens they hold does not matter."""

    encoder_ids_BS: Ids
    decoder_ids_BT: Ids
    targets_BT: Ids
    samples_B: Ids
    encoder_segments_BS: Ids | None
    decoder_segments_BT: Ids | None


def full_sequences(config: RunConfig) -> Full:
    """A micro-batch of the configured lengths without padding."""
    count = config.train.micro_batch
    encoder, decoder = (np.ones((count, config.model.length(stack)), np.int64) for stack in STACKS)
    segments = (encoder, decoder) if config.data.packing else (None, None)
    return Full(encoder, decoder, decoder, np.arange(count, dtype=np.int64), *segments)


@dataclass(frozen=True)
class Played:
    """One rank after its step."""

    system: System
    watch: Watch


class _Told:
    """An optimizer that tells the watch when it is at work, and when it has ended."""

    def __init__(self, optimizer: Any, watch: Watch) -> None:
        self._optimizer, self._watch = optimizer, watch

    def step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's own step."""
        self._watch.phase = "optimizer"
        self._optimizer.step(*args, **kwargs)
        self._watch.phase = "publish"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def play(
    config: RunConfig, world: int, rank: int, routing: Routing = "balanced", answer: Answer | None = None
) -> Played:
    """Build `rank` of `world` without weights, and play a step on it; `config` must have passed `train.check`.

    `answer` answers host reads instead of `routing`'s answers (with what a run has read, to compare the two).
    """
    watch = Watch(played=True)

    def stack() -> Stack:
        return next(found for module in reversed(watch.products.modules.stack) if (found := _stack_of(module)))

    grid = make_grid(config.layout, world)
    place = Place(rank, world, 0, 1, torch.device("meta"))
    answer = answer or Answers(config, grid, rank, routing, stack)
    with fake_world(rank, world), own_groups(), watch.watching(), answered_by(watch.host.counting(answer)):
        system = build(config, place, initialise=False)
        batch = full_sequences(config)
        watch_step(system, [batch] * system.num_microbatches, watch)
    return Played(system, watch)


def _stack_of(module: torch.nn.Module) -> Stack | None:
    found: Stack | None = getattr(module, "stack", None)
    return found


def watch_step(system: System, sequences: Sequence[Sequences], watch: Watch) -> None:
    """Two steps on this rank's micro-batches `sequences`, of which the second is counted; the first has one of them."""
    params = system.buckets.params
    parts = {name: system.buckets.specs[name].part for name in params}
    watch.products.modules.know(params, parts)
    gradients = {name: grad for name, param in params.items() if (grad := _gradient(param)) is not None}
    watch.products.gradients.know((grad, parts[name]) for name, grad in gradients.items())
    state = chain(master_state(system.buckets), system.optimizer.state())
    _settle(watch, "gradients", gradients.values())
    _settle(watch, "optimizer", (tensor.view for tensor in state))
    _settle(watch, "weights", params.values())
    first, told = _one_micro_batch(system), replace(system, optimizer=_Told(system.optimizer, watch))
    train_step(first, sequences[: first.num_microbatches], 0)
    gc.collect()
    watch.start()
    train_step(told, sequences, 1)


def _one_micro_batch(system: System) -> System:
    """The same system, with one micro-batch a rank to a step."""
    train = system.config.train
    smallest = replace(train, global_batch=system.topology.dp.size * train.micro_batch)
    return replace(system, config=replace(system.config, train=smallest))


def _gradient(param: Tensor) -> Tensor | None:
    """Where a parameter's gradient is added up."""
    main_grad: Tensor | None = getattr(param, "main_grad", None)
    return param.grad if main_grad is None else main_grad


def _settle(watch: Watch, kind: Kind, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        watch.memory.becomes(tensor, kind)
