"""Cutting the model into stages: optimal, complete, and never empty."""

from itertools import combinations, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megaswitch.model.config import ModelConfig
from megaswitch.model.flops import unit_flops
from megaswitch.model.presets import presets
from megaswitch.model.units import all_units, balance, cut_stages, param_specs, stage_problems, switch_layers
from megaswitch.topology.config import LayoutConfig


def dearest(costs: list[float], lengths: list[int]) -> float:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return max(sum(costs[end - length : end]) for end, length in zip(ends, lengths, strict=True))


@given(st.data(), st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_no_other_cut_is_cheaper(data, costs):
    parts = data.draw(st.integers(1, len(costs)))
    lengths = balance(costs, parts)
    assert len(lengths) == parts and sum(lengths) == len(costs) and min(lengths) >= 1
    cuts = combinations(range(1, len(costs)), parts - 1)
    edges = ([0, *cut, len(costs)] for cut in cuts)
    best = min(dearest(costs, [b - a for a, b in pairwise(edge)]) for edge in edges)
    assert dearest(costs, lengths) == best


@given(
    blocks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pp=st.integers(1, 6),
    chunks=st.sampled_from([None, 1, 2, 3, 4]),
)
@example(blocks=(9, 2), pp=1, chunks=4)
@example(blocks=(8, 9), pp=2, chunks=4)
def test_stages_are_whole_and_not_empty_or_it_is_told(blocks, pp, chunks):
    config = ModelConfig(num_encoder_layers=blocks[0], num_decoder_layers=blocks[1], d_model=8, d_ff=16, vocab_size=50)
    layout = LayoutConfig(pp=pp, chunks=chunks)
    half = layout.num_stages // 2
    even = layout.num_chunks % 2 == 0
    impossible = min(blocks) < half if even else sum(blocks) < layout.num_stages
    assert bool(stage_problems(config, layout)) == impossible
    if impossible:
        return
    stages = cut_stages(config, layout)
    assert len(stages) == layout.num_stages
    assert [unit for stage in stages for unit in stage] == all_units(config)
    assert all(any(unit.kind == "block" for unit in stage) for stage in stages)
    if even:
        assert [{u.stack for u in stage} for stage in stages] == [{"encoder"}] * half + [{"decoder"}] * half


def test_problems_name_what_is_short():
    config = ModelConfig(num_encoder_layers=3, num_decoder_layers=2)
    (problem,) = stage_problems(config, LayoutConfig(pp=3))
    assert problem.key == "layout.pp" and "decoder has 2 blocks for 3 stages" in problem.message
    assert [p.message for p in stage_problems(config, LayoutConfig(pp=4))] == [
        "leaves a stage empty: encoder has 3 blocks for 4 stages",
        "leaves a stage empty: decoder has 2 blocks for 4 stages",
    ]
    (problem,) = stage_problems(config, LayoutConfig(pp=6, chunks=1))
    assert "the model has 5 blocks for 6 stages" in problem.message


def test_one_cut_is_balanced_by_flops():
    """The decoder is shorter: an even cut by blocks would leave most work on the encoder's half."""
    config = ModelConfig(**presets()["switch_base_8"]["model"])
    first, second = cut_stages(config, LayoutConfig(pp=2, chunks=1))
    costs = [sum(unit_flops(config, u.kind, u.stack, u.layer) for u in stage) for stage in (first, second)]
    assert max(costs) < 1.2 * min(costs)
    assert sum(u.kind == "block" for u in first) < 12


@given(st.data(), st.integers(1, 4), st.sampled_from([1, 2, 3]))
def test_stages_by_hand_hold_what_they_are_told(data, pp, chunks):
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=pp * chunks, max_size=pp * chunks))
    encoder = data.draw(st.integers(0, sum(lengths)))
    config = ModelConfig(num_encoder_layers=max(encoder, 1), num_decoder_layers=max(sum(lengths) - encoder, 1))
    layout = LayoutConfig(pp=pp, chunks=chunks, stages=", ".join(map(str, lengths)))
    if not 0 < encoder < sum(lengths):
        assert [p.key for p in stage_problems(config, layout)] == ["layout.stages"]
        return
    assert stage_problems(config, layout) == []
    stages = cut_stages(config, layout)
    assert [unit for stage in stages for unit in stage] == all_units(config)
    assert [sum(unit.kind == "block" for unit in stage) for stage in stages] == lengths


def test_a_stage_by_hand_may_span_both_stacks():
    config = ModelConfig(num_encoder_layers=3, num_decoder_layers=3)
    first, second, third, fourth = cut_stages(config, LayoutConfig(pp=2, stages="2,2,1,1"))
    assert [(u.kind, u.stack) for u in second] == [
        ("block", "encoder"),
        ("norm", "encoder"),
        ("embed", "decoder"),
        ("block", "decoder"),
    ]
    assert [u.stack for u in (*first, *third, *fourth)] == ["encoder"] * 3 + ["decoder"] * 3


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("3,x", ["is '3,x', which is no list of whole numbers"]),
        ("3,,3", ["is '3,,3', which is no list of whole numbers"]),
        ("3.0,3", ["is '3.0,3', which is no list of whole numbers"]),
        ("6", ["= 6 has 1 stages, but layout.pp x chunks = 2"]),
        ("3,4", ["= 3,4 has 7 blocks, but the model has 6"]),
        ("6,0", ["= 6,0 leaves a stage without a block"]),
        ("-1,7", ["= -1,7 leaves a stage without a block"]),
        ("1,1,1", ["= 1,1,1 has 3 stages, but layout.pp x chunks = 2", "= 1,1,1 has 3 blocks, but the model has 6"]),
    ],
)
def test_what_is_wrong_with_stages_by_hand(stages, told):
    config = ModelConfig(num_encoder_layers=3, num_decoder_layers=3)
    problems = stage_problems(config, LayoutConfig(pp=2, chunks=1, stages=stages))
    assert [(p.key, p.message) for p in problems] == [("layout.stages", message) for message in told]
    assert all("give 2 numbers of at least 1 with commas between them, 6 together" in p.remedy for p in problems)


def test_shared_parameters_are_listed_once_and_used_by_each_stage():
    config = ModelConfig(num_encoder_layers=2, num_decoder_layers=2)
    stages = cut_stages(config, LayoutConfig(pp=2))
    names = [set(param_specs(config, stage)) for stage in stages]
    assert [("embedding" in n) for n in names] == [True, False, True, True]  # tied: the head is the table
    assert [("encoder.relative_bias" in n) for n in names] == [True, True, False, False]
    assert [("decoder.relative_bias" in n) for n in names] == [False, False, True, True]
    assert set().union(*names) == set(param_specs(config))
    untied = ModelConfig(num_encoder_layers=2, num_decoder_layers=2, tied_embeddings=False)
    names = [set(param_specs(untied, stage)) for stage in cut_stages(untied, LayoutConfig(pp=2))]
    assert [("embedding" in n, "head" in n) for n in names] == [
        (True, False),
        (False, False),
        (True, False),
        (False, True),
    ]


def test_switch_layers_encoder_first():
    config = ModelConfig(
        num_encoder_layers=4,
        num_decoder_layers=2,
        num_experts=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=1,
    )
    assert [(u.stack, u.layer) for u in switch_layers(config)] == [("encoder", 1), ("encoder", 3), ("decoder", 1)]


@pytest.mark.parametrize("preset", presets())
def test_every_preset_can_be_cut_into_two_chunks_on_each_of_two_ranks(preset):
    config, layout = ModelConfig(**presets()[preset]["model"]), LayoutConfig(pp=2)
    assert stage_problems(config, layout) == []
    assert [u for stage in cut_stages(config, layout) for u in stage] == all_units(config)
