"""What a played step predicts is what a real one does, rank by rank, on layouts that run here.

The same watch is put over both. Routing is the real run's: what its hosts read is what the played one is told.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from parity.harness import Sample, place, small

from megaswitch.dry_run.host_work import PARTS
from megaswitch.dry_run.memory import KINDS
from megaswitch.dry_run.step import play, watch_step
from megaswitch.dry_run.watch import Watch
from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.ops.config import Backend, OpsConfig
from megaswitch.optim.config import OptimConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.topology import own_groups
from megaswitch.train.config import RunConfig
from megaswitch.train.system import build
from megaswitch.utils.host import answered_by

Values = dict[str, Any]
Reads = list[tuple[str, list[Any]]]


BLOCKS = {
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}
SIZES = {"d_model": 64, "d_ff": 96, "d_kv": 16, "vocab_size": 257, "encoder_length": 48, "decoder_length": 23}


def config_of(layout: Values, model: Values, optim: Values, train: Values, backend: Backend = "cpp") -> RunConfig:
    base = small(**BLOCKS, **SIZES, **model)
    return replace(
        base,
        layout=LayoutConfig(**layout),
        train=replace(base.train, **{"dtype": "bfloat16", "global_batch": 8, "micro_batch": 2, **train}),
        ops=OpsConfig(backend),
        optim=OptimConfig(**{"min_dim_to_factor": 16, "bucket_elements": 1 << 14, **optim}),
    )


def sample(model: ModelConfig, seed: int) -> Sample:
    """A micro-batch of random sequences without padding, as training has them."""
    rng = np.random.default_rng([dist.get_rank(), seed])
    ids = {stack: rng.integers(2, model.vocab_size, (2, model.length(stack))) for stack in STACKS}
    return Sample(ids["encoder"], ids["decoder"], ids["decoder"], np.arange(2))


def facts(watch: Watch) -> dict[str, Any]:
    """All that is counted."""
    memory = watch.memory
    return {
        "traffic": {key: (t.count, t.bytes, t.wire) for key, t in watch.traffic.items()},
        "flops": {key: n for key, n in watch.products.flops.items() if n},
        "products": {key: n for key, n in watch.products.calls.items() if n},
        "launched": launched(watch),
        "host reads": dict(watch.host.reads),
        **dict(zip(KINDS, memory.peak, strict=True)),
        "peak": sum(memory.at_peak),
    }


def launched(watch: Watch) -> tuple[int, ...]:
    """Operations in all, and by part of the step. Where there is a reduce-scatter, in all alone and without gloo's own
    copies: it sums everything, and copies this rank's part of the sum when it is waited for."""
    counts = watch.host.launched
    scatters = sum(traffic.count for (_, op), traffic in watch.traffic.items() if op == "reduce_scatter")
    if scatters:
        return (counts.total() - (0 if watch.played else scatters),)
    return (counts.total(), *(counts[part] for part in PARTS))


def run_rank(config: RunConfig) -> tuple[dict[str, Any], Reads]:
    """One rank of a real run: what the watch counted, and all that the host read."""
    watch, reads = Watch(played=False), []

    def note(kind: str, tensor: Any) -> list[Any]:
        reads.append((kind, tensor.tolist()))
        return reads[-1][1]

    with own_groups(), watch.watching(), answered_by(watch.host.counting(note)):
        system = build(config, place())
        watch_step(system, [sample(config.model, i) for i in range(system.num_microbatches)], watch)
    return facts(watch), reads


def replaying(reads: Reads) -> Any:
    """Answers what a run has read, in its order."""
    left: Iterator[tuple[str, list[Any]]] = iter(reads)

    def answer(kind: str, tensor: Any) -> list[Any]:
        wanted, values = next(left)
        assert wanted == kind
        return values

    return answer


SELECTIVE, FULL = {"recompute": "selective"}, {"recompute": "full"}
NARROW = {"name": "adamw", "grad_dtype": "bfloat16", "moment_dtype": "bfloat16", "master": "only"}
LAYOUTS: dict[str, tuple[Any, ...]] = {
    "alone": (1, {}, {}, {}, {}),
    "tp2": (2, {"tp": 2}, {}, {}, {}),
    "tp2 whole sequences": (2, {"tp": 2, "sequence_parallel": False}, {}, {}, {}),
    "pp2": (2, {"pp": 2}, {}, {}, {}),
    "pp2 tied": (2, {"pp": 2, "chunks": 1, "schedule": "gpipe"}, {"tied_embeddings": True}, {}, FULL),
    "pp2 zero-bubble": (2, {"pp": 2, "schedule": "zb_v"}, {"num_experts": 4}, {}, SELECTIVE),
    "ep2": (2, {"ep": 2}, {"capacity_factor": None}, {}, {}),
    "ep2 padded": (2, {"ep": 2, "dispatch": "padded"}, {}, {}, {}),
    "dp2 zero": (2, {}, {}, {"name": "adamw"}, SELECTIVE),
    "dp2 narrow": (2, {}, {}, NARROW, {}),
    "dp2 whole": (2, {}, {}, {"zero": False, "clip": 1.0}, {"dtype": "float32"}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2, "ep": 2}, {"activation": "geglu", "dropout": 0.1}, {}, SELECTIVE),
    "alone in plain torch": (1, {}, {}, {}, {}, "reference"),
    "tp2 etp2 ep2": (4, {"tp": 2, "ep": 2, "etp": 2}, {"router": "top2"}, {}, FULL),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_played_step_counts_what_a_real_one_does(world, name):
    n, *parts = LAYOUTS[name]
    config = config_of(*parts)
    for rank, (real, reads) in enumerate(world(n, run_rank, config)):
        told = facts(play(config, n, rank, answer=replaying(reads)).watch)
        for key in ("traffic", "flops", "products", "host reads", "weights", "gradients", "optimizer"):
            assert told[key] == real[key], f"rank {rank}: {key}"
        for key, rel in {"launched": 0.0, "activations": 0.1, "buffers": 0.1, "peak": 0.1}.items():
            least = real[key]
            for _ in range(2):
                # gloo's threads may let go of a tensor late, which adds to the memory of that run, and lets autograd
                # copy a gradient that it would take as it is
                if told[key] == pytest.approx(least, rel=rel):
                    break
                least = min(least, world(n, run_rank, config)[rank][0][key])
            assert told[key] == pytest.approx(least, rel=rel), f"rank {rank}: {key}"


def test_nothing_but_weights_gradients_and_optimizer_stays():
    played = play(config_of(*LAYOUTS["alone"][1:]), 1, 0)
    live = dict(zip(KINDS, played.watch.memory.live, strict=True))
    assert live["activations"] == 0 and live["buffers"] < 1000
    assert live["weights"] > 0 and live["gradients"] == 2 * live["weights"] < live["optimizer"]
