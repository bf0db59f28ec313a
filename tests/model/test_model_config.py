"""What follows from a model's configuration by arithmetic."""

import pytest

from megaswitch.model.config import ModelConfig, capacity
from megaswitch.model.flops import flops_per_sequence, unit_flops
from megaswitch.model.presets import presets


def preset(name: str, **more) -> ModelConfig:
    return ModelConfig(**{**presets()[name]["model"], **more})


def sparse_layers(layers: int, sparse: int, experts: int = 8) -> list[int]:
    config = ModelConfig(num_encoder_layers=layers, num_experts=experts, num_sparse_encoder_layers=sparse)
    return [i for i in range(layers) if config.is_sparse("encoder", i)]


@pytest.mark.parametrize(
    ("layers", "sparse", "expected"),
    [
        (12, 6, [1, 3, 5, 7, 9, 11]),
        (12, 3, [3, 7, 11]),
        (5, 5, [0, 1, 2, 3, 4]),
        (4, 1, [3]),
        (5, 2, [1, 3]),
        (7, 3, [1, 3, 5]),
        (3, 0, []),
    ],
)
def test_sparse_layers_are_the_last_of_each_run(layers, sparse, expected):
    assert sparse_layers(layers, sparse) == expected
    assert len(expected) == sparse


def test_without_experts_nothing_is_sparse():
    assert sparse_layers(12, 6, experts=0) == []


def test_switch_c_is_sparse_everywhere_and_base_in_every_other_block():
    c, base = preset("switch_c_2048"), preset("switch_base_128")
    assert all(c.is_sparse(stack, i) for stack in ("encoder", "decoder") for i in range(15))
    assert [base.is_sparse("decoder", i) for i in range(4)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("t5_base", 124.6e9),
        ("switch_base_128", 124.6e9),
        ("switch_large_128", 424.9e9),
        ("switch_xxl_128", 6.26e12),
        ("switch_c_2048", 869e9),
    ],
)
def test_flops_are_the_papers(name, published):
    assert flops_per_sequence(preset(name)) == pytest.approx(published, rel=1e-3)


def test_flops_by_hand():
    """One block each, lengths 3 and 2, d_model 4, d_ff 5, one head of 6, 7 ids, 2 experts."""
    config = ModelConfig(
        vocab_size=7,
        d_model=4,
        d_ff=5,
        d_kv=6,
        num_heads=1,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_experts=2,
        num_sparse_encoder_layers=1,
        encoder_length=3,
        decoder_length=2,
    )
    ffn, projections = 2 * 2 * 4 * 5, 2 * 4 * 4 * 6
    encoder = 3 * (ffn + projections + 2 * 3 * 6)
    decoder = 2 * (ffn + 2 * projections + 2 * 2 * 6 + 2 * 3 * 6)
    head = 2 * 7 * 4 * 2
    assert flops_per_sequence(config) == encoder + decoder + head
    assert flops_per_sequence(config, router=True) - flops_per_sequence(config) == 3 * 2 * 4 * 2
    assert unit_flops(config, "embed", "encoder", 0) == unit_flops(config, "norm", "encoder", 0) == 0.0


def test_geglu_has_a_third_matrix():
    relu, geglu = preset("t5_base"), preset("t5_base", activation="geglu", d_ff=2048)
    assert flops_per_sequence(relu) == flops_per_sequence(geglu)


def test_capacity_rounds_half_to_even_or_truncates():
    assert capacity(None, 100, 4, 2, "round") is None
    assert [capacity(1.0, tokens, 2, 0, "round") for tokens in (5, 7, 9)] == [2, 4, 4]
    assert [capacity(1.0, tokens, 2, 0, "floor") for tokens in (5, 7, 9)] == [2, 3, 4]
    assert capacity(1.0, 4, 64, 3, "round") == 3
    assert capacity(100.0, 8, 4, 1, "floor") == 8, "never more than there are tokens"


@pytest.mark.parametrize(
    ("name", "training", "evaluation"),
    [
        ("switch_base_128", (80, 18), (128, 28)),
        ("switch_large_128", (40, 18), (64, 28)),
        ("switch_xxl_128", (40, 18), (128, 57)),
        ("switch_c_2048", (2, 2), (2, 2)),
    ],
)
def test_capacities_of_the_released_models(name, training, evaluation):
    config = preset(name)
    for factor, expected in ((config.capacity_factor, training), (config.eval_capacity_factor, evaluation)):
        slots = tuple(
            capacity(
                factor,
                config.length(stack) * config.group_size(stack),
                config.num_experts,
                config.min_capacity,
                config.capacity_rounding,
            )
            for stack in ("encoder", "decoder")
        )
        assert slots == expected


def test_what_is_derived():
    config = ModelConfig(dropout=0.1, group_sequences=4, num_heads=3, d_kv=5)
    assert config.hidden_dropout_of_experts == 0.1
    assert ModelConfig(dropout=0.1, expert_dropout=0.4).hidden_dropout_of_experts == 0.4
    assert (config.group_size("encoder"), config.group_size("decoder")) == (4, 4)
    assert ModelConfig(group_sequences=4, decoder_group_sequences=2).group_size("decoder") == 2
    assert config.inner_dim == 15
