"""One optimizer step over a global batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from megaswitch.model.micro_batch import Sequences
from megaswitch.model.record import Record, StepRecord
from megaswitch.optim.bucket import Bucket
from megaswitch.optim.clip import clip_, gradient_norm
from megaswitch.optim.schedule import learning_rate
from megaswitch.pipeline.schedule import make_schedule
from megaswitch.train.batches import make_work
from megaswitch.train.system import System
from megaswitch.utils.errors import DivergedError
from megaswitch.utils.host import host_read


@dataclass(frozen=True)
class StepResult:
    """What a step did: all numbers are of the global batch and equal on all ranks.

    `loss` is everything that is optimised; `record` its parts; `grad_norm` is before clipping.
    """

    loss: float
    record: StepRecord
    grad_norm: float
    lr: float


def total_loss(system: System, record: StepRecord) -> float:
    """Cross-entropy with z-loss per real target, and the auxiliary losses with their coefficients."""
    model = system.config.model
    aux = model.aux_loss_weight * record.aux + model.router_z_loss_coef * record.router_z
    return (record.nll + record.z) / max(record.targets, 1.0) + aux


def compute_gradients(
    system: System, sequences: Sequence[Sequences], step: int, *, stop: bool = False
) -> StepRecord:
    """Forward and backward of a global batch, of which `sequences` are this rank's micro-batches; gradients end up
    reduced.

    `stop` is this process's wish to end after the step; the record's `stops` counts the wishes of all.
    """
    config, layout = system.config, system.config.layout
    work = make_work(system, sequences, step, training=True)
    record = Record(config.model, system.topology.device)
    record.ask_to_stop(stop)
    system.buckets.zero_grad()
    schedule = make_schedule(layout.schedule, layout.pp, layout.num_chunks, system.num_microbatches)
    own = schedule[system.topology.pp.rank]
    system.executor.run(own, work.batches, work.contexts, record, train=True)
    system.buckets.reduce()
    return record.summed(system.topology.world)


def train_step(system: System, sequences: Sequence[Sequences], step: int, *, stop: bool = False) -> StepResult:
    """Step number `step` (from 0): gradients, norm, clipping, update; no update when a number is not finite."""
    config = system.config
    record = compute_gradients(system, sequences, step, stop=stop)
    norm = gradient_norm(system.buckets)
    grad_norm, loss = float(host_read("grad_norm", norm.unsqueeze(0))[0]), total_loss(system, record)
    if not (isfinite(grad_norm) and isfinite(loss)):
        raise DivergedError(
            f"step {step + 1} has loss {loss} and gradient norm {grad_norm}; nothing was updated. "
            "Resume from the last checkpoint with a lower optim.lr, clipping (optim.clip) or train.dtype=float32"
        )
    clip_(system.buckets, norm, config.optim.clip)
    lr = learning_rate(config.optim, step, config.train.steps)
    system.optimizer.step(lr, step + 1, Bucket.begin_publish)
    return StepResult(loss, record, grad_norm, lr)
