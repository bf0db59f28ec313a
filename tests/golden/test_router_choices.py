"""Routers of several choices against the published vectors."""

import numpy as np
import pytest
import torch
from golden.routing import combine, each_alone, logits_of, places, planned

from megaswitch.layers.moe.routers.ntlb import pick_in_turn
from megaswitch.layers.moe.routers.top2 import pick_two
from megaswitch.layers.moe.scores import Scores
from megaswitch.layers.moe.statistics import Tokens, aux_loss
from megaswitch.topology.topology import Axis

ALONE = Axis("tp", 0, (0,))


@pytest.mark.parametrize("policy", ["all", "none", "threshold", "random"])
def test_top2(golden, policy):
    vector = golden("router_top2")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    shape = logits_GSE.shape[:2]
    uniform_T = torch.from_numpy(vector["uniform"]).flatten()
    experts, threshold = logits_GSE.shape[2], float(vector["threshold"])
    choice = pick_two(Scores(logits_GSE.flatten(0, 1), places(shape)), policy, threshold, policy == "all", uniform_T)
    plan, count_GKE = planned(choice, shape, capacity, experts)
    for k in (0, 1):
        np.testing.assert_array_equal(choice.index_TK[:, k].view(shape), vector[f"{policy}_i{k + 1}"])
        np.testing.assert_allclose(choice.gate_TK[:, k].view(shape), vector[f"{policy}_g{k + 1}"], rtol=1e-12)
        np.testing.assert_array_equal(plan.kept_GSK[..., k], vector[f"{policy}_kept{k + 1}"] == 1)
    table = combine(choice, plan, capacity, experts)
    np.testing.assert_allclose(table, vector[f"{policy}_combine"], rtol=1e-12, atol=1e-15)
    aux = aux_loss(choice, Tokens(*places(shape)[:2], count_GKE), ALONE)
    np.testing.assert_allclose(aux.share.item() / shape[0], vector[f"{policy}_aux"], rtol=1e-8)


def test_no_token_left_behind(golden):
    vector = golden("router_ntlb")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    shape = logits_GSE.shape[:2]
    experts, logits_TE = logits_GSE.shape[2], logits_GSE.flatten(0, 1)
    choice = pick_in_turn(Scores(logits_TE, places(shape)), int(vector["k"]))
    plan, count_GKE = planned(choice, shape, capacity, experts)
    probs_TE = pick_in_turn(Scores(logits_TE, each_alone(shape.numel())), int(vector["k"])).balance[0].probs_GE
    np.testing.assert_allclose(probs_TE.view(vector["probs"].shape), vector["probs"], rtol=1e-12)
    np.testing.assert_allclose(combine(choice, plan, capacity, experts), vector["combine"], rtol=1e-12, atol=1e-15)
    served = plan.kept_GSK.int().argmax(-1)
    np.testing.assert_array_equal(served, vector["choice"])
    np.testing.assert_array_equal(~plan.kept_GSK.any(-1), vector["left"] == 1)
    aux = aux_loss(choice, Tokens(*places(shape)[:2], count_GKE), ALONE)
    np.testing.assert_allclose(aux.share.item() / shape[0], vector["aux"], rtol=1e-12)
