"""Buckets, capacity, cross-entropy and counts against the published vectors."""

import numpy as np
import pytest
import torch

from megaswitch.layers.cross_entropy import cross_entropy
from megaswitch.model.config import ModelConfig, capacity
from megaswitch.model.presets import presets
from megaswitch.model.units import param_specs
from megaswitch.ops.reference.relative_buckets import relative_buckets
from megaswitch.params.derive import count
from megaswitch.topology.topology import Axis

PUBLISHED = {
    "t5_base": "T5-Base(v1.0 relu3072 tied)",
    "t5_large": "T5-Large(v1.0 relu4096 tied)",
    "t5_xxl": "T5-XXL(v1.1 geglu10240 untied)",
    **{f"switch_base_{e}": f"Switch-Base-{e}(relu3072 tied 1/2)" for e in (8, 16, 32, 64, 128, 256)},
    "switch_large_128": "Switch-Large-128(relu4096 tied 1/2)",
    "switch_xxl_128": "Switch-XXL-128(geglu10240 untied 1/2)",
    "switch_c_2048": "Switch-C-2048(relu6144 H30 untied)",
}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets(golden, bidirectional):
    vector = golden("rel_buckets")
    found = relative_buckets(
        torch.from_numpy(vector["relative_position"]),
        bidirectional,
        int(vector["num_buckets"]),
        int(vector["max_distance"]),
    )
    key = "bidirectional" if bidirectional else "causal"
    np.testing.assert_array_equal(found, vector[f"{key}_exact"])
    np.testing.assert_array_equal(found, vector[key])


def test_capacity(golden):
    vector = golden("capacity")
    columns = [str(c) for c in vector["columns"]]
    rules = {"mtf_min4": (4, "floor"), "t5x_min4": (4, "round"), "t5x_min2": (2, "round")}
    assert set(columns) == {"group_size", "capacity_factor", "experts", *rules}
    for values in vector["table"]:
        row = {name: float(value) for name, value in zip(columns, values, strict=True)}
        tokens, experts = int(row["group_size"]), int(row["experts"])
        for column, (minimum, rounding) in rules.items():
            found = capacity(row["capacity_factor"], tokens, experts, minimum, rounding)
            assert found == row[column], (row, column)


def test_cross_entropy_with_z_loss(golden):
    vector = golden("ce_zloss")
    logits = torch.from_numpy(vector["logits"]).requires_grad_()
    weights_N = torch.from_numpy(vector["weights"]).flatten()
    targets_N = torch.from_numpy(vector["targets"]).flatten()
    losses = cross_entropy(logits.flatten(0, 1), targets_N, 0, float(vector["z"]), Axis("tp", 0, (0,)))
    total = (losses.loss_N * weights_N).sum() / weights_N.sum()
    total.backward()
    np.testing.assert_allclose(total.item(), vector["loss_real_tokens"], rtol=1e-13)
    np.testing.assert_allclose(logits.grad, vector["grad_real_tokens"], atol=1e-16)
    nll = (losses.nll_N * weights_N).sum() / weights_N.sum()
    np.testing.assert_allclose(nll.item(), vector["ce_only"], rtol=1e-13)
    np.testing.assert_allclose(-nll.item(), vector["neg_log_perp"], rtol=1e-13)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameter_counts(golden, preset):
    published = golden("param_counts.json")[PUBLISHED[preset]]
    counted = count(param_specs(ModelConfig(**presets()[preset]["model"])).values())
    assert counted == {part: published[part] for part in counted}
