"""One optimizer step over a global batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from megaswitch.model.micro_batch import Sequences
from megaswitch.model.record import Record, StepRecord
from megaswitch.optim.bucket import Bucket
from megaswitch.optim.clip import clip_, gradient_squares
from megaswitch.optim.schedule import learning_rate
from megaswitch.pipeline.schedule import make_schedule
from megaswitch.train.batches import make_work
from megaswitch.train.system import System


@dataclass(frozen=True)
class StepResult:
    """What a step did: all numbers are of the global batch and equal on all ranks.

    `loss` is everything that is optimised; `record` its parts; `grad_norm` is before clipping. A step whose loss or
    norm is not finite is `skipped`: nothing was updated. `retried`: the first attempt was not finite, so a second was
    made.
    """

    loss: float
    record: StepRecord
    grad_norm: float
    lr: float
    skipped: bool = False
    retried: bool = False


Stop = Callable[[], bool]


def never() -> bool:
    """The wish to go on."""
    return False


def total_loss(system: System, record: StepRecord) -> float:
    """Cross-entropy with z-loss per real target, and the auxiliary losses with their coefficients."""
    model = system.config.model
    aux = model.aux_loss_weight * record.aux + model.router_z_loss_coef * record.router_z
    return (record.nll + record.z) / max(record.targets, 1.0) + aux


def compute_gradients(
    system: System, sequences: Sequence[Sequences], step: int, *, stop: Stop = never
) -> StepRecord:
    """Forward and backward of a global batch, of which `sequences` are this rank's micro-batches; gradients end up
    reduced.

    `stop` is asked at the end whether this process wants no further step; the record's `stops` counts the wishes of
    all.
    """
    config, layout = system.config, system.config.layout
    work = make_work(system, sequences, step, training=True)
    record = Record(config.model, system.topology.device)
    system.buckets.zero_grad()
    schedule = make_schedule(layout.schedule, layout.pp, layout.num_chunks, len(sequences))
    own = schedule[system.topology.pp.rank]
    system.executor.run(own, work.batches, work.contexts, record, train=True)
    system.buckets.reduce()
    record.add_squares(gradient_squares(system.buckets))
    record.ask_to_stop(stop())
    return record.summed(system.topology.world)


@dataclass(frozen=True)
class _Attempt:
    """Gradients computed and what they came to read, the one time a step that the host waits for it: these numbers are
    equal on all ranks, so that all come to one decision."""

    record: StepRecord
    loss: float

    @property
    def finite(self) -> bool:
        return isfinite(self.record.grad_norm) and isfinite(self.loss)


def _attempt(system: System, sequences: Sequence[Sequences], step: int, *, stop: Stop) -> _Attempt:
    record = compute_gradients(system, sequences, step, stop=stop)
    return _Attempt(record, total_loss(system, record))


def train_step(
    system: System,
    sequences: Sequence[Sequences],
    step: int,
    *,
    updates: int | None = None,
    stop: Stop = never,
    rerun: bool = False,
) -> StepResult:
    """Step number `step` (from 0): gradients, norm, clipping, update; no update when a number is not finite.

    `updates` are those done before (by default all steps were updates). With `rerun`, gradients that are not finite are
    computed once more: the same batch with the same noise, so that only a fault of the machine can make a difference.
    """
    config = system.config
    attempt, retried = _attempt(system, sequences, step, stop=stop), False
    if rerun and not attempt.finite:
        attempt, retried = _attempt(system, sequences, step, stop=stop), True
    lr = learning_rate(config.optim, step, config.train.steps)
    if attempt.finite:
        clip_(system.buckets, attempt.record.grad_norm, config.optim.clip)
        system.optimizer.step(lr, (step if updates is None else updates) + 1, Bucket.begin_publish)
    return StepResult(attempt.loss, attempt.record, attempt.record.grad_norm, lr, not attempt.finite, retried)
