"""Validation: the same stages forward only, with the evaluation capacity and without noise."""

from dataclasses import dataclass
from typing import Protocol

from megaswitch.model.record import Record, StepRecord
from megaswitch.pipeline.schedule import forward_only
from megaswitch.train.batches import Source, make_work, read
from megaswitch.train.system import System


class FiniteSource(Source, Protocol):
    """A source with an end; samples beyond it are rows of padding."""

    @property
    def num_samples(self) -> int:
        """Samples of one pass."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Means in nats: `nll` per real target, `content_nll` per target that is neither EOS nor a sentinel."""

    nll: float
    content_nll: float
    dropped: float
    samples: int


def num_batches(system: System, source: FiniteSource) -> int:
    """Global batches of one evaluation."""
    whole = -(-source.num_samples // system.config.train.global_batch)
    wanted = system.config.eval.batches
    return min(whole, wanted) if wanted else whole


def evaluate(system: System, source: FiniteSource) -> Evaluation:
    """Pass over the validation set (or its first `eval.batches` global batches)."""
    config, layout = system.config, system.config.layout
    record = Record(config.model, system.topology.device)
    schedule = forward_only(layout.pp, layout.num_chunks, system.num_microbatches, v=layout.v_placement)
    count = num_batches(system, source)
    for i in range(count):
        sequences = read(system, source, i * config.train.global_batch)
        work = make_work(system, sequences, 0, training=False)
        own = schedule[system.topology.pp.rank]
        system.executor.run(own, work.batches, work.contexts, record, train=False)
    summed = record.summed(system.topology.world)
    samples = min(source.num_samples, count * config.train.global_batch)
    return Evaluation(summed.mean_nll, _content(summed), summed.dropped_share, samples)


def _content(record: StepRecord) -> float:
    return record.content_nll / max(record.content_targets, 1.0)
