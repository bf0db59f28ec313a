"""What a step computes and moves is what it needs: every product once, every collective as large as the layers'
formulas say, and none on an axis of size 1. Counted on real runs; sums over all ranks.

S, T tokens of encoder and decoder, B sequences of a micro-batch, D d_model, F d_ff, W heads x d_kv, V vocabulary,
E experts.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from parity.harness import RandomSource, place, small

from megaswitch.dry_run.watch import Watch
from megaswitch.model.record import StepRecord
from megaswitch.model.stage import carried_after
from megaswitch.model.units import cut_stages
from megaswitch.ops.config import Backend, OpsConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.placement import place_of
from megaswitch.topology.topology import own_groups
from megaswitch.train.batches import read
from megaswitch.train.config import RunConfig
from megaswitch.train.step import train_step
from megaswitch.train.system import build

Counts = Counter[tuple[str, str]]
SIZE = 8  # bytes of a float64 and of an index


def config_of(
    train: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    backend: Backend = "cpp",
    **layout: Any,
) -> RunConfig:
    """Lengths that every tp here divides, so that nothing is padded; AdamW, which sums no statistics."""
    config = small(encoder_length=12, decoder_length=8)
    optim = {"name": "adamw", "lr": 1e-3, "schedule": "constant", **(optim or {})}
    return replace(
        config,
        layout=LayoutConfig(**layout),
        ops=OpsConfig(backend),
        train=replace(config.train, **(train or {})),
        optim=replace(config.optim, **optim),
    )


def step_of(config: RunConfig) -> tuple[StepRecord, Counts, Counts, int, dict[str, int]]:
    """One rank's second step: record, calls and bytes by (axis, operation), FLOPs, sizes of the axes."""
    with own_groups():
        system = build(config, place())
    source, watch = RandomSource(config.model), Watch(played=False)
    train_step(system, read(system, source, 0), 0)
    system.buckets.await_weights(system.buckets.params)
    with watch.watching():
        watch.start()
        result = train_step(system, read(system, source, config.train.global_batch), 1)
        system.buckets.await_weights(system.buckets.params)
    calls = Counter({key: traffic.count for key, traffic in watch.traffic.items()})
    moved = Counter({key: traffic.bytes for key, traffic in watch.traffic.items()})
    sizes = {name: system.topology.axis(name).size for name in ("pp", "dp", "tp", "edp", "ep", "etp")}
    return result.record, calls, moved, sum(watch.products.flops.values()), sizes


def blocks(config: RunConfig) -> tuple[int, int]:
    """Dense and sparse blocks of each stack (alike in both)."""
    model = config.model
    return model.num_encoder_layers - model.num_sparse_encoder_layers, model.num_sparse_encoder_layers


def products_needed(config: RunConfig, record: StepRecord) -> int:
    """FLOPs of one forward over the global batch: 2 per weight and token, or per pair of positions and feature."""
    model, sequences = config.model, config.train.global_batch
    s, t, d, w = model.encoder_length, model.decoder_length, model.d_model, model.inner_dim
    dense, sparse = blocks(config)

    def attention(queries: int, keys: int) -> int:
        projections = 2 * d * w * (2 * queries + 2 * keys)
        return projections + 2 * (2 * queries * keys * w)

    per_block = attention(s, s) + attention(t, t) + attention(t, s)
    feed_forward = 2 * 2 * d * model.d_ff * (s + t)
    router = 2 * d * model.num_experts * (s + t)
    rows = sum(int(layer.routed - layer.dropped) for layer in record.layers.values())
    total = sequences * ((dense + sparse) * per_block + dense * feed_forward + sparse * router)
    return total + sequences * 2 * t * d * model.vocab_size + rows * 2 * 2 * d * model.d_ff


def logits_again(config: RunConfig) -> int:
    """FLOPs of one of attention's two products, which the backward of its kernels computes again: they keep no weights.
    The definition keeps them."""
    if config.ops.backend == "reference":
        return 0
    model, blocks_of_a_stack = config.model, sum(blocks(config))
    s, t = model.encoder_length, model.decoder_length
    return config.train.global_batch * blocks_of_a_stack * 2 * model.inner_dim * (s * s + t * t + t * s)


LAYOUTS = [
    (1, {}),
    (1, {"backend": "reference"}),
    (2, {"tp": 2}),
    (4, {"tp": 2, "ep": 2, "sequence_parallel": False}),
    (2, {"tp": 2, "etp": 2}),
    (4, {"pp": 2, "ep": 2, "schedule": "zb_v"}),
    (2, {"pp": 2, "schedule": "zb_h1"}),
    (2, {"pp": 2, "chunks": 1, "schedule": "gpipe"}),
]


@pytest.mark.parametrize(("n", "layout"), LAYOUTS)
def test_every_product_is_computed_once(world, n, layout):
    """Forward, input gradient and weight gradient: three times the forward, however it is divided and put off; and
    where attention keeps no weights, its logits a second time."""
    config = config_of(**layout)
    ranks = world(n, step_of, config)
    assert sum(flops for *_, flops, _ in ranks) == 3 * products_needed(config, ranks[0][0]) + logits_again(config)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_recomputation_adds_one_forward_at_most(world, schedule):
    """Of the blocks; what comes after the last activation that is needed is not computed again."""
    config = config_of({"recompute": "full"}, pp=2, schedule=schedule)
    ranks = world(2, step_of, config)
    needed, more = products_needed(config, ranks[0][0]), logits_again(config)
    assert 3.5 * needed < sum(flops for *_, flops, _ in ranks) - more < 4 * needed


def moved_by(ranks: list[Any]) -> tuple[Counts, Counts]:
    """Calls and bytes over all ranks; on axes of more than one rank only."""
    calls, moved = sum((r[1] for r in ranks), Counter()), sum((r[2] for r in ranks), Counter())
    sizes = ranks[0][4]
    assert all(sizes.get(axis, 2) > 1 for axis, _ in calls), calls
    return calls, moved


@pytest.mark.parametrize("split", [True, False])
def test_tensor_parallel_regions(world, split):
    """region.py, attention.py, feed_forward.py, embedding.py, cross_entropy.py, moe/layer.py."""
    config = config_of(tp=2, sequence_parallel=split)
    model, (dense, sparse) = config.model, blocks(config)
    calls, moved = moved_by(world(2, step_of, config))
    s, t, d = model.encoder_length, model.decoder_length, model.d_model
    micro = 2 * config.train.global_batch  # micro-batches of one sequence, on two ranks
    encoder = (dense + sparse) + dense  # regions entered with S tokens (attention and feed-forward), and left
    decoder = 2 * (dense + sparse) + dense
    entered = s * (encoder + dense + sparse) + t * (decoder + 1)  # with the memory in each decoder block; the head
    left = s * (encoder + 1) + t * (decoder + 1)  # with both embeddings
    through = micro * d * SIZE
    choices, whole = micro * sparse * (s + t) * SIZE, micro * sparse * (s + t) * d * SIZE
    losses = 3 * micro * t * SIZE
    if split:
        assert moved["tp", "all_gather"] == (entered + left) * through + choices
        assert moved["tp", "reduce_scatter"] == (entered + left) * through
        regions = 2 * (encoder + decoder) + (dense + sparse) + 1 + 2  # memories, the head; both embeddings
        assert calls["tp", "reduce_scatter"] == micro * regions
        assert moved["tp", "all_reduce"] > losses, "and the norms' and routers' gradients"
    else:
        assert moved["tp", "all_gather"] == choices + 2 * whole
        assert moved["tp", "all_reduce"] >= (entered + left) * through + losses


@pytest.mark.parametrize("dispatch", ["variable", "padded"])
def test_tokens_to_experts(world, dispatch):
    """moe/dispatch.py, moe/padded.py."""
    config = config_of(ep=2, dispatch=dispatch)
    model, (_, sparse) = config.model, blocks(config)
    ranks = world(2, step_of, config)
    calls, moved = moved_by(ranks)
    passes = 2 * sparse * config.train.global_batch  # Switch layers and micro-batches, over all ranks
    rows = sum(int(layer.routed - layer.dropped) for layer in ranks[0][0].layers.values())
    counts = passes * model.num_experts * SIZE
    if dispatch == "padded":
        slots = [model.slots(model.length(stack), training=True) for stack in ("encoder", "decoder")]
        rows, counts = sparse * config.train.global_batch * model.num_experts * sum(slots), 0
    assert moved["ep", "all_to_all"] == 4 * rows * model.d_model * SIZE + counts
    assert calls["ep", "all_to_all"] == passes * (4 + (dispatch == "variable"))


@pytest.mark.parametrize("zero", [True, False])
def test_gradients_and_weights(world, zero):
    """bucket.py: each gradient is reduced once and each weight gathered once, and no bucket is padded by more than an
    element a rank."""
    config = config_of(optim={"zero": zero, "bucket_elements": 1000}, ep=2)

    def sizes(config: RunConfig) -> dict[str, int]:
        found: Counter[str] = Counter()
        for bucket in build(config, place()).buckets.buckets:
            found[bucket.kind.data_axis] += bucket.grads.numel()
        return dict(found)

    elements = world(4, sizes, config)
    _, moved = moved_by(world(4, step_of, config))
    for axis in ("dp", "edp"):
        size = SIZE * sum(rank[axis] for rank in elements)
        if zero:
            assert moved[axis, "reduce_scatter"] == moved[axis, "all_gather"] == size
        else:
            targets = 4 * SIZE if axis == "dp" else 0
            assert moved[axis, "all_reduce"] == size + targets
            assert moved[axis, "all_gather"] == 0


@pytest.mark.parametrize(("chunks", "schedule"), [(1, "1f1b"), (2, "1f1b"), (2, "zb_v"), (2, "zb_h1")])
def test_between_stages(world, chunks, schedule):
    """executor.py: each carried tensor crosses each border between ranks once in each direction."""
    config = config_of(pp=2, chunks=chunks, schedule=schedule)
    model, micro = config.model, config.train.global_batch
    calls, moved = moved_by(world(2, step_of, config))
    s, t = model.encoder_length, model.decoder_length
    layout, tokens = config.layout, {"x": s, "memory": s, "y": t}
    cuts = cut_stages(model, layout)
    ranks = [place_of(layout.v_placement, 2, stage)[0] for stage in range(len(cuts))]
    crossed = [carried_after(cuts[i][-1]) for i in range(len(cuts) - 1) if ranks[i] != ranks[i + 1]]
    assert len(crossed) == {(1, "1f1b"): 1, (2, "zb_v"): 2}.get((chunks, schedule), 3)
    assert calls["pp", "send"] == calls["pp", "receive"] == 2 * micro * sum(map(len, crossed))
    size = 2 * micro * sum(tokens[name] for names in crossed for name in names) * model.d_model * SIZE
    assert moved["pp", "send"] == moved["pp", "receive"] == size
