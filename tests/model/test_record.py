"""The record of a step: shares add up over micro-batches and ranks, each number in its place."""

import pytest
import torch
import torch.distributed as dist

from megaswitch.layers.moe.statistics import STATISTICS
from megaswitch.model.config import ModelConfig
from megaswitch.model.record import TOKENS, Record, StepRecord
from megaswitch.model.units import switch_layers
from megaswitch.topology.topology import Axis, make_axis

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=3,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=2,
)


def filled(factor: float) -> Record:
    """Distinct numbers everywhere, in two micro-batches."""
    record = Record(CONFIG, CPU)
    for _ in range(2):
        record.add_squares(factor * torch.tensor(32.0))
        record.add_tokens(factor * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
        for i, unit in enumerate(switch_layers(CONFIG)):
            record.add_layer(unit, factor * (torch.arange(1.0, len(STATISTICS) + 4) + 10 * i))
    return record


def check(summed: StepRecord, times: float) -> None:
    assert [getattr(summed, name) / times for name in TOKENS] == [1, 2, 4, 8, 16]
    assert summed.squares / times == 32 and summed.grad_norm == summed.squares**0.5
    assert list(summed.layers) == ["encoder.1", "decoder.0", "decoder.1"]
    for i, layer in enumerate(summed.layers.values()):
        assert [getattr(layer, name) / times for name in STATISTICS] == [10 * i + n for n in range(1, 6)]
        assert [n / times for n in layer.load] == [10 * i + n for n in range(6, 9)]


def test_micro_batches_add_up():
    record = filled(1.0)
    assert record.layer_values("dropped") == [6.0, 26.0, 46.0]
    check(record.summed(Axis("world", 0, (0,))), 2)


def test_ranks_add_up(world):
    def work():
        rank = dist.get_rank()
        record = filled(float(rank + 1))
        record.ask_to_stop(rank == 1)
        return record.summed(make_axis("world", range(3), rank))

    for summed in world(3, work):
        check(summed, 2 * (1 + 2 + 3))
        assert summed.stops == 1.0


def test_means_and_totals():
    summed = filled(1.0).summed(Axis("world", 0, (0,)))
    assert summed.mean_nll == 2 / 8
    assert summed.aux == 2 * (1 + 11 + 21)
    assert summed.router_z == 2 * (2 + 12 + 22)
    assert summed.dropped_share == pytest.approx((3 + 13 + 23) / (4 + 14 + 24))


def test_nothing_is_divided_by_nothing():
    empty = Record(CONFIG, CPU).summed(Axis("world", 0, (0,)))
    assert (empty.mean_nll, empty.dropped_share, empty.aux) == (0.0, 0.0, 0.0)
    dense = Record(ModelConfig(), CPU).summed(Axis("world", 0, (0,)))
    assert dense.layers == {} and dense.dropped_share == 0.0


def test_counts_stay_whole_in_float64():
    record, unit = Record(CONFIG, CPU), switch_layers(CONFIG)[0]
    large = torch.zeros(len(STATISTICS) + 3)
    large[STATISTICS.index("routed")] = 2.0**24
    record.add_layer(unit, large)
    record.add_layer(unit, large / 2.0**24)
    assert record.layer_values("routed")[0] == 2**24 + 1
