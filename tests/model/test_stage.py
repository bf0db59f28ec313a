"""What travels between stages."""

import pytest

from megaswitch.model.config import ModelConfig
from megaswitch.model.stage import carried_after
from megaswitch.model.units import Unit, cut_stages
from megaswitch.topology.config import LayoutConfig


@pytest.mark.parametrize(
    ("unit", "carried"),
    [
        (None, ()),
        (Unit("embed", "encoder"), ("x",)),
        (Unit("block", "encoder", 3), ("x",)),
        (Unit("norm", "encoder"), ("memory",)),
        (Unit("embed", "decoder"), ("memory", "y")),
        (Unit("block", "decoder", 0), ("memory", "y")),
        (Unit("norm", "decoder"), ("loss",)),
    ],
)
def test_carried_after(unit, carried):
    assert carried_after(unit) == carried


def test_borders_of_a_pipeline():
    cuts = cut_stages(ModelConfig(num_encoder_layers=2, num_decoder_layers=2), LayoutConfig(pp=2))
    assert [carried_after(units[-1]) for units in cuts] == [("x",), ("memory",), ("memory", "y"), ("loss",)]
