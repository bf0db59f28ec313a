"""Validation: the same stages forward only, with the evaluation capacity and without noise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Means in nats: `nll` per real target, `content_nll` per target that is neither EOS nor a sentinel. `sets`
    holds the same of each named set."""

    nll: float
    content_nll: float
    dropped: float
    samples: int
    sets: dict[str, "Evaluation"] = field(default_factory=dict)


def num_batches(system: System, source: FiniteSource) -> int:
    """Global batches of one evaluation."""
    whole = -(-source.num_samples // system.config.train.global_batch)
    wanted = system.config.eval.batches
    return min(whole, wanted) if wanted else whole


def evaluate(system: System, sources: Mapping[str, FiniteSource]) -> Evaluation:
    """Pass over the validation sets (or the first `eval.batches` global batches of each); all targets count alike."""
    records = {name: _pass(system, source) for name, source in sources.items()}
    samples = {name: num_samples(system, source) for name, source in sources.items()}
    sets = {name: _means([records[name]], samples[name]) for name in sources if name}
    total = _means(list(records.values()), sum(samples.values()))
    return Evaluation(total.nll, total.content_nll, total.dropped, total.samples, sets)


def _pass(system: System, source: FiniteSource) -> StepRecord:
    """One set's sums over all ranks."""
    config, layout = system.config, system.config.layout
    record = Record(config.model, system.topology.device)
    schedule = forward_only(layout.pp, layout.num_chunks, system.num_microbatches, v=layout.v_placement)
    for i in range(num_batches(system, source)):
        sequences = read(system, source, i * config.train.global_batch)
        work = make_work(system, sequences, 0, training=False)
        own = schedule[system.topology.pp.rank]
        system.executor.run(own, work.batches, work.contexts, record, train=False)
    return record.summed(system.topology.world)


def num_samples(system: System, source: FiniteSource) -> int:
    """Samples of one evaluation."""
    return min(source.num_samples, num_batches(system, source) * system.config.train.global_batch)


def _means(records: list[StepRecord], samples: int) -> Evaluation:
    """Of several sets together: sums over sums."""
    layers = [layer for record in records for layer in record.layers.values()]
    return Evaluation(
        nll=sum(r.nll for r in records) / max(sum(r.targets for r in records), 1.0),
        content_nll=sum(r.content_nll for r in records) / max(sum(r.content_targets for r in records), 1.0),
        dropped=sum(layer.dropped for layer in layers) / max(sum(layer.routed for layer in layers), 1.0),
        samples=samples,
    )
