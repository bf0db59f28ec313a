"""The router, its plan and its losses against the published vectors."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megaswitch.layers.moe.losses import balance_loss, router_z_loss
from megaswitch.layers.moe.plan import Plan, make_plan
from megaswitch.layers.moe.router import Choice, choose

SWITCH = ("nodrop", "cf125", "drop", "tie")


def route(vector: dict[str, NDArray], real: torch.Tensor | None = None) -> tuple[Choice, Plan, torch.Tensor]:
    x_GSD, w_DE = torch.from_numpy(vector["x"]), torch.from_numpy(vector["W"])
    choice = choose(x_GSD.flatten(0, 1), w_DE)
    index_GS = choice.index_T.view(x_GSD.shape[:2])
    if real is not None:
        index_GS = torch.where(real, index_GS, -1)
    return choice, make_plan(index_GS, w_DE.shape[1], int(vector["capacity"])), index_GS


def combine(choice: Choice, plan: Plan, index_GS: torch.Tensor, capacity: int) -> NDArray:
    groups, tokens = index_GS.shape
    gate_GS = choice.gate_T.view(groups, tokens)
    table = np.zeros((groups, tokens, choice.probs_TE.shape[1], capacity))
    for g in range(groups):
        for s in range(tokens):
            if plan.kept_GS[g, s]:
                table[g, s, index_GS[g, s], plan.position_GS[g, s]] = gate_GS[g, s]
    return table


@pytest.mark.parametrize("name", SWITCH)
def test_switch_top1(golden, name):
    vector = golden(f"router_switch_{name}")
    choice, plan, index_GS = route(vector)
    shape = vector["probs"].shape
    np.testing.assert_allclose(choice.probs_TE.view(shape), vector["probs"], rtol=1e-12)
    np.testing.assert_array_equal(index_GS, vector["index"])
    np.testing.assert_allclose(choice.gate_T.view(index_GS.shape), vector["gate"], rtol=1e-12)
    np.testing.assert_array_equal(plan.position_GS, vector["position"])
    np.testing.assert_array_equal(plan.kept_GS, vector["kept"] == 1)
    table = combine(choice, plan, index_GS, int(vector["capacity"]))
    np.testing.assert_allclose(table, vector["combine"], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(table > 0, vector["dispatch"] > 0)


@pytest.mark.parametrize("name", SWITCH)
def test_losses_and_their_gradients(golden, name):
    vector = golden(f"router_switch_{name}")
    _, plan, index_GS = route(vector)
    groups, tokens = index_GS.shape
    group_T = torch.arange(groups).repeat_interleave(tokens)
    real_T = torch.ones(groups * tokens, dtype=torch.bool)
    logits_TE = torch.from_numpy(vector["logits"]).flatten(0, 1).requires_grad_()
    aux = balance_loss(torch.softmax(logits_TE, -1), group_T, real_T, plan.count_GE) / groups
    z = router_z_loss(torch.logsumexp(logits_TE, -1), group_T, real_T, plan.count_GE) / groups
    np.testing.assert_allclose(aux.item(), vector["aux"], rtol=1e-12)
    np.testing.assert_allclose(z.item(), vector["z"], rtol=1e-12)
    if "d_aux" in vector:
        for loss, name_of_grad in ((aux, "d_aux"), (z, "d_z")):
            (grad,) = torch.autograd.grad(loss, logits_TE, retain_graph=True)
            np.testing.assert_allclose(grad.view(vector[name_of_grad].shape), vector[name_of_grad], atol=1e-15)


def test_padding_is_not_routed_and_not_counted(golden):
    vector = golden("router_switch_padding")
    real_GS = torch.from_numpy(vector["importance"] == 1)
    choice, plan, index_GS = route(vector, real_GS)
    np.testing.assert_array_equal(plan.kept_GS, vector["kept"] == 1)
    table = combine(choice, plan, index_GS, int(vector["capacity"]))
    np.testing.assert_allclose(table, vector["combine"], rtol=1e-12, atol=1e-15)
    group_T = torch.arange(index_GS.shape[0]).repeat_interleave(index_GS.shape[1])
    aux = balance_loss(choice.probs_TE, group_T, real_GS.flatten(), plan.count_GE) / index_GS.shape[0]
    np.testing.assert_allclose(aux.item(), vector["aux_clean"], rtol=1e-12)


def test_selective_precision(golden):
    vector = golden("router_selective_precision")
    x_TD = torch.from_numpy(vector["x_bf16_as_f32"]).to(torch.bfloat16).flatten(0, 1)
    w_DE, shape = torch.from_numpy(vector["W"]), vector["index"].shape
    choice = choose(x_TD, w_DE)
    assert choice.probs_TE.dtype == torch.float32
    np.testing.assert_allclose(choice.probs_TE.view(vector["probs_f32"].shape), vector["probs_f32"], atol=1e-6)
    np.testing.assert_array_equal(choice.index_T.view(shape), vector["index"])
    plan = make_plan(choice.index_T.view(shape), w_DE.shape[1], int(vector["capacity"]))
    np.testing.assert_array_equal(plan.kept_GS, vector["kept"] == 1)
    narrow = Choice(choice.probs_TE, choice.index_T, choice.gate_T.to(torch.bfloat16).float(), choice.log_z_T)
    table = combine(narrow, plan, choice.index_T.view(shape), int(vector["capacity"]))
    np.testing.assert_allclose(table, vector["combine_bf16_as_f32"], rtol=1e-2)


def test_jitter_multiplies_the_routers_copy(golden):
    vector = golden("router_exploration")
    x_GSD, w_DE = torch.from_numpy(vector["x"]), torch.from_numpy(vector["W"])
    uniform, eps = torch.from_numpy(vector["jitter_uniform"]), float(vector["jitter_eps"])
    if uniform.min() >= 0 and uniform.max() <= 1 and uniform.min() < 0.5:
        uniform = 1 - eps + 2 * eps * uniform
    choice = choose(x_GSD.flatten(0, 1), w_DE, uniform.flatten(0, 1))
    np.testing.assert_array_equal(choice.index_T.view(x_GSD.shape[:2]), vector["jitter_index"])
    np.testing.assert_allclose(choice.gate_T.view(x_GSD.shape[:2]), vector["jitter_gate"], rtol=1e-12)
