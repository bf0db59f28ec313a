"""Which samples are whose: the global batch is divided without rest, in order, whatever the layout."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from parity.harness import RandomSource, place, small

from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.start import Place
from megaswitch.train.batches import make_work, own_range, read
from megaswitch.train.config import RunConfig
from megaswitch.train.system import build


def config_of(layout: LayoutConfig, micro_batch: int = 2) -> RunConfig:
    config = small(group_sequences=2)
    return replace(config, layout=layout, train=replace(config.train, global_batch=16, micro_batch=micro_batch))


@pytest.mark.parametrize(
    ("n", "layout"),
    [(1, {}), (2, {}), (4, {}), (4, {"tp": 2}), (4, {"pp": 2}), (4, {"tp": 2, "ep": 4}), (8, {"pp": 2, "tp": 2})],
)
def test_the_global_batch_is_divided_over_dp_alone(world, n, layout):
    def work():
        config = config_of(LayoutConfig(**layout))
        system = build(config, place())
        source = RandomSource(config.model)
        work = make_work(system, read(system, source, 32), 2, training=True)
        samples = [batch.samples_B.tolist() for batch in work.batches]
        assert all(ctx.samples_B.tolist() == own for ctx, own in zip(work.contexts, samples, strict=True))
        assert {len(own) for own in samples} == {2} and len(samples) == system.num_microbatches
        (targets,) = {ctx.num_targets for ctx in work.contexts}
        assert all(ctx.num_groups == {"encoder": 8.0, "decoder": 8.0} and ctx.step == 2 for ctx in work.contexts)
        return system.topology.dp.rank, own_range(system, 32), [s for own in samples for s in own], targets

    by_dp = {}
    for dp, own, samples, targets in world(n, work):
        assert samples == list(range(own[0], own[0] + own[1]))
        assert by_dp.setdefault(dp, samples) == samples, "ranks of one data-parallel index read the same"
        source = RandomSource(small().model)
        assert targets == (source.batch(32, 16).targets_BT != 0).sum(), "real targets of the whole global batch"
    assert [s for dp in sorted(by_dp) for s in by_dp[dp]] == list(range(32, 48))


def test_no_targets_at_all_divide_by_1():
    class Padding(RandomSource):
        def batch(self, first, count):
            sample = super().batch(first, count)
            return sample._replace(targets_BT=sample.targets_BT * 0)

    config = config_of(LayoutConfig())
    system = build(config, Place(0, 1, 0, 1, torch.device("cpu")))
    work = make_work(system, read(system, Padding(config.model), 0), 0, training=False)
    assert {ctx.num_targets for ctx in work.contexts} == {1.0}
    assert not any(ctx.training for ctx in work.contexts)
    assert not dist.is_initialized()
