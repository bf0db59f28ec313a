"""What is allowed and yet unwise."""

from dataclasses import replace

import pytest

from megaswitch.model.presets import presets
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.advice import advice, tokens_per_expert
from megaswitch.train.config import RunConfig, TrainConfig


def config_of(preset: str, micro_batch: int, **layout) -> RunConfig:
    model = replace(RunConfig().model, **presets()[preset]["model"])
    return RunConfig(model=model, layout=LayoutConfig(**layout), train=TrainConfig(micro_batch=micro_batch))


@pytest.mark.parametrize(
    ("preset", "micro_batch", "layout", "encoder", "decoder"),
    [
        ("switch_c_2048", 1, {"ep": 2048}, 512, 114),
        ("switch_c_2048", 4, {"ep": 512}, 512, 114),
        ("switch_c_2048", 1, {"ep": 256, "tp": 2, "pp": 4}, 32, 7.125),
        ("switch_base_128", 16, {"ep": 64}, 4096, 912),
        ("switch_xxl_128", 16, {"ep": 32, "tp": 4, "etp": 4}, 2048, 456),
    ],
)
def test_tokens_of_an_expert_and_pass(preset, micro_batch, layout, encoder, decoder):
    config = config_of(preset, micro_batch, **layout)
    assert tokens_per_expert(config) == {"encoder": encoder, "decoder": decoder}
    assert len(advice(config)) == (encoder < 300) + (decoder < 300)


def test_a_dense_model_needs_no_advice():
    config = config_of("t5_base", 1)
    assert tokens_per_expert(config) == {} and advice(config) == []
