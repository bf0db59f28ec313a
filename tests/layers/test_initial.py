"""Deviations and shapes of the weights that both published rules draw."""

from dataclasses import replace
from math import sqrt

import pytest
import torch

from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.params.boxes import Box
from megaswitch.params.init import TRUNCATED_STD, initialise_

CONFIG = ModelConfig(
    vocab_size=64,
    d_model=96,
    d_ff=160,
    d_kv=24,
    num_heads=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=4,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1,
    tied_embeddings=False,
)
D, F, K, H, S = 96, 160, 24, 8, 0.1
ALL_HEADS, BIAS = H * K, sqrt(1 / ((32 + H) / 2))
RELEASED = {
    "encoder.blocks.0.feed_forward.wi": sqrt(S / D),
    "encoder.blocks.0.feed_forward.wo": sqrt(S / F),
    "encoder.blocks.1.switch.experts.wi": sqrt(S / D),
    "encoder.blocks.1.switch.experts.wo": sqrt(S / F),
    "encoder.blocks.1.switch.router": 0.02,
    "decoder.blocks.0.cross_attention.q": sqrt(S / D) / sqrt(K),
    "decoder.blocks.0.cross_attention.k": sqrt(S / D),
    "decoder.blocks.0.attention.v": sqrt(S / D),
    "decoder.blocks.0.attention.o": sqrt(S / ALL_HEADS),
    "encoder.relative_bias": BIAS * sqrt(S),
    "embedding": 1.0,
    "head": sqrt(S / D),
}
PAPER = {
    **{name: std * TRUNCATED_STD for name, std in RELEASED.items() if "wi" in name or "wo" in name or name == "head"},
    "encoder.blocks.1.switch.router": sqrt(S / D) * TRUNCATED_STD,
    "decoder.blocks.0.cross_attention.q": 1 / sqrt(D * K),
    "decoder.blocks.0.cross_attention.k": 1 / sqrt(D),
    "decoder.blocks.0.attention.v": 1 / sqrt(D),
    "decoder.blocks.0.attention.o": 1 / sqrt(ALL_HEADS),
    "encoder.relative_bias": BIAS,
    "embedding": 1.0,
}


def drawn(config: ModelConfig, name: str) -> torch.Tensor:
    spec = param_specs(config)[name]
    out = torch.empty(spec.shape)
    initialise_(out, spec, Box((0,) * len(spec.shape), spec.shape), seed=0)
    return out


@pytest.mark.parametrize("rule,expected", [("released", RELEASED), ("paper", PAPER)])
def test_deviation(rule, expected):
    config = replace(CONFIG, init_rule=rule)
    for name, std in expected.items():
        weight = drawn(config, name)
        error = 4 / sqrt(2 * weight.numel())  # four deviations of a measured deviation
        assert weight.std().item() == pytest.approx(std, rel=error), name
        assert abs(weight.mean().item()) < 4 * std / sqrt(weight.numel()), name


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_paper_draws_again_beyond_two_deviations(scale):
    config = replace(CONFIG, init_rule="paper", init_scale=scale)
    for name in ("encoder.blocks.0.feed_forward.wi", "encoder.blocks.1.switch.experts.wi"):
        limit = 2 * sqrt(scale / D)
        largest = drawn(config, name).abs().max().item()
        assert 0.95 * limit < largest <= limit * (1 + 1e-6), name


def test_released_experts_are_not_truncated():
    assert drawn(CONFIG, "encoder.blocks.1.switch.experts.wi").abs().max().item() > 3 * sqrt(S / D)
