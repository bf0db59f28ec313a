"""The whole Switch layer with all gradients against the published vectors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from megaswitch.layers.context import Context
from megaswitch.layers.moe.layer import SwitchLayer
from megaswitch.model.config import ModelConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid
from megaswitch.topology.topology import make_topology


def layer_of(vector, activation: str) -> tuple[SwitchLayer, dict[str, nn.Parameter]]:
    names = {"Wr": "router", "wi": "experts.wi", "wo": "experts.wo", "wi_gate": "experts.wi_gate"}
    params = {f"layer.{n}": nn.Parameter(torch.from_numpy(vector[k])) for k, n in names.items() if k in vector}
    _, tokens, width = vector["x"].shape
    experts, _, hidden = vector["wi"].shape
    config = ModelConfig(
        d_model=width,
        d_ff=hidden,
        num_experts=experts,
        activation=activation,
        encoder_length=tokens,
        group_sequences=1,
        capacity_factor=int(vector["capacity"]) * experts / tokens,
        min_capacity=1,
        aux_loss_coef=float(vector["alpha"]),
        router_z_loss_coef=float(vector["zc"]),
    )
    topology = make_topology(make_grid(LayoutConfig(), 1), 0, torch.device("cpu"))
    return SwitchLayer("layer", config, "encoder", params, topology), params


@pytest.mark.parametrize("activation", ["relu", "geglu"])
@pytest.mark.parametrize("capacity", [24, 4])
def test_layer_and_gradients(golden, activation, capacity):
    vector = golden(f"moe_{activation}_cap{capacity}")
    layer, params = layer_of(vector, activation)
    x_BLD = torch.from_numpy(vector["x"]).requires_grad_()
    groups, tokens, _ = x_BLD.shape
    ctx = Context(
        topology=layer.topology,
        training=True,
        seed=0,
        step=0,
        samples_B=torch.arange(groups),
        num_targets=1.0,
        num_groups={"encoder": float(groups), "decoder": 1.0},
    )
    out_BLD, statistics = layer(x_BLD, torch.ones(groups, tokens, dtype=torch.bool), ctx)
    (out_BLD * torch.from_numpy(vector["dout"])).sum().backward()
    np.testing.assert_allclose(out_BLD.detach(), vector["out"], atol=1e-14)
    recorded = SimpleNamespace(aux=statistics[0].item(), z=statistics[1].item(), dropped=statistics[2].item())
    np.testing.assert_allclose(recorded.aux, vector["aux"], rtol=1e-12)
    np.testing.assert_allclose(recorded.z, vector["z"], rtol=1e-12)
    assert recorded.dropped == groups * tokens - vector["kept"].sum()
    np.testing.assert_allclose(x_BLD.grad, vector["dx"], atol=1e-13)
    for key, name in (("dWr", "router"), ("dwi", "experts.wi"), ("dwo", "experts.wo"), ("dwi_gate", "experts.wi_gate")):
        if key in vector:
            np.testing.assert_allclose(params[f"layer.{name}"].grad, vector[key], atol=1e-13, err_msg=key)
