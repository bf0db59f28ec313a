"""Routers of several choices against the published vectors."""

import numpy as np
import pytest
import torch
from golden.routing import combine, logits_of, planned

from megaswitch.layers.moe.routers.ntlb import pick_in_turn
from megaswitch.layers.moe.routers.top2 import pick_two
from megaswitch.layers.moe.statistics import Tokens, aux_loss
from megaswitch.topology.topology import Axis

ALONE = Axis("tp", 0, (0,))


def whole(shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(shape[0]).repeat_interleave(shape[1]), torch.ones(shape.numel(), dtype=torch.bool)


@pytest.mark.parametrize("policy", ["all", "none", "threshold", "random"])
def test_top2(golden, policy):
    vector = golden("router_top2")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    shape = logits_GSE.shape[:2]
    uniform_T = torch.from_numpy(vector["uniform"]).flatten()
    choice = pick_two(logits_GSE.flatten(0, 1), policy, float(vector["threshold"]), policy == "all", uniform_T)
    plan, count_GKE = planned(choice, shape, capacity)
    for k in (0, 1):
        np.testing.assert_array_equal(choice.index_TK[:, k].view(shape), vector[f"{policy}_i{k + 1}"])
        np.testing.assert_allclose(choice.gate_TK[:, k].view(shape), vector[f"{policy}_g{k + 1}"], rtol=1e-12)
        np.testing.assert_array_equal(plan.kept_GSK[..., k], vector[f"{policy}_kept{k + 1}"] == 1)
    np.testing.assert_allclose(combine(choice, plan, capacity), vector[f"{policy}_combine"], rtol=1e-12, atol=1e-15)
    aux = aux_loss(choice, Tokens(*whole(shape), count_GKE), ALONE)
    np.testing.assert_allclose(aux.share.item() / shape[0], vector[f"{policy}_aux"], rtol=1e-8)


def test_no_token_left_behind(golden):
    vector = golden("router_ntlb")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    shape = logits_GSE.shape[:2]
    choice = pick_in_turn(logits_GSE.flatten(0, 1), int(vector["k"]))
    plan, count_GKE = planned(choice, shape, capacity)
    np.testing.assert_allclose(choice.probs_TE.view(vector["probs"].shape), vector["probs"], rtol=1e-12)
    np.testing.assert_allclose(combine(choice, plan, capacity), vector["combine"], rtol=1e-12, atol=1e-15)
    served = plan.kept_GSK.int().argmax(-1)
    np.testing.assert_array_equal(served, vector["choice"])
    np.testing.assert_array_equal(~plan.kept_GSK.any(-1), vector["left"] == 1)
    aux = aux_loss(choice, Tokens(*whole(shape), count_GKE), ALONE)
    np.testing.assert_allclose(aux.share.item() / shape[0], vector["aux"], rtol=1e-12)
