"""What other tests of routers take for granted: their inputs, the gradient of a layer's logits, and how padding is
counted by rules that are not ours."""

import numpy as np
import pytest
import torch
from golden.routing import each_alone, logits_of, places, planned
from torch import Tensor
from torch.nn import functional as F

from megaswitch.layers.moe.losses import balance_loss, router_z_loss
from megaswitch.layers.moe.plan import Plan
from megaswitch.layers.moe.routers.switch import pick
from megaswitch.layers.moe.scores import Scores


@pytest.mark.parametrize("name", ["switch_padding", "bpr", "ntlb"])
def test_logits_and_probabilities(golden, name):
    vector = golden(f"router_{name}")
    logits_GSE = logits_of(vector)
    np.testing.assert_allclose(logits_GSE, vector["logits"], rtol=1e-12, atol=1e-14)
    choice = pick(Scores(logits_GSE.flatten(0, 1), each_alone(logits_GSE.shape[:2].numel())))
    np.testing.assert_allclose(choice.balance[0].probs_GE.view(logits_GSE.shape), vector["probs"], rtol=1e-12)
    if name == "bpr":
        np.testing.assert_allclose(choice.gate_TK.view(vector["gate"].shape), vector["gate"], rtol=1e-12)


def test_logits_of_the_two_precisions(golden):
    vector = golden("router_selective_precision")
    x_GSD, w_DE = torch.from_numpy(vector["x_bf16_as_f32"]), torch.from_numpy(vector["W"])
    np.testing.assert_allclose(x_GSD @ w_DE, vector["logits_f32"], rtol=1e-5, atol=1e-5)
    narrow = (x_GSD.bfloat16() @ w_DE.bfloat16()).float()
    np.testing.assert_allclose(narrow, vector["logits_bf16_path"], rtol=2**-7)
    assert np.abs(narrow.numpy() - vector["logits_f32"]).max() > 1e-3


def test_places_of_real_tokens_among_padding(golden):
    """A padding token has no place and no gate; the vector writes 0 for both."""
    vector = golden("router_switch_padding")
    real_GS = torch.from_numpy(vector["importance"] == 1)
    logits_GSE = logits_of(vector)
    choice = pick(Scores(logits_GSE.flatten(0, 1), places(real_GS.shape, real_GS)))
    plan, _ = planned(choice, real_GS.shape, int(vector["capacity"]), logits_GSE.shape[2], real_GS)
    index_GS, gate_GS = choice.index_TK.view(real_GS.shape), choice.gate_TK.view(real_GS.shape)
    np.testing.assert_array_equal(index_GS, vector["index"])
    np.testing.assert_allclose(gate_GS * real_GS, vector["gate"], rtol=1e-12)
    np.testing.assert_array_equal(plan.position_GSK[..., 0][real_GS], vector["position"][real_GS])
    assert not vector["position"][~real_GS].any() and not vector["dispatch"][~real_GS].any()
    np.testing.assert_array_equal(vector["dispatch"] > 0, vector["combine"] > 0)


def test_padding_as_others_count_it(golden):
    """Load-balancing losses of one batch. mesh-tensorflow counts padding in f and P and scales each group by its
    share of real tokens; T5X leaves padding out but divides by all tokens, or counts it like any token. Ours
    ("clean") leaves it out of everything."""
    vector = golden("router_switch_padding")
    probs, real = vector["probs"], vector["importance"][..., None]
    chosen = np.eye(probs.shape[-1])[vector["index"]]

    def losses_G(f, p):
        return probs.shape[-1] * (f * p).sum(-1)

    counted = losses_G(chosen.mean(1), probs.mean(1))
    rules = {
        "aux": (counted * real.mean((1, 2))).mean(),
        "aux_t5x": losses_G((chosen * real).mean(1), (probs * real).mean(1)).mean(),
        "aux_ignoring_padding_flag": counted.mean(),
        "aux_clean": losses_G(*((a * real).sum(1) / real.sum(1) for a in (chosen, probs))).mean(),
    }
    for key, value in rules.items():
        np.testing.assert_allclose(value, vector[key], rtol=1e-12, err_msg=key)
    assert len({round(value, 6) for value in rules.values()}) == 4


def test_z_loss_leaves_padding_out(golden):
    """mesh-tensorflow's is a mean over real tokens of all groups; ours of each group, then over groups."""
    vector = golden("router_switch_padding")
    log_z_GS, real_GS = np.log(np.exp(vector["logits"]).sum(-1)), vector["importance"]
    np.testing.assert_allclose((log_z_GS**2 * real_GS).sum() / real_GS.sum(), vector["z"], rtol=1e-12)


def layer_by_hand(vector, activation: str, logits_GSE: Tensor) -> tuple[Tensor, Plan, Tensor]:
    """The loss of a Switch layer, token by token, as a function of its logits; its plan; and its gates [G, S]."""
    x_GSD, wi, wo = (torch.from_numpy(vector[name]) for name in ("x", "wi", "wo"))
    shape, experts = x_GSD.shape[:2], wi.shape[0]
    choice = pick(Scores(logits_GSE.flatten(0, 1), places(shape)))
    plan, count_GKE = planned(choice, shape, int(vector["capacity"]), experts)
    out = torch.zeros_like(x_GSD)
    for g, s, _ in plan.kept_GSK.nonzero().tolist():
        e = choice.index_TK.view(shape)[g, s]
        hidden = x_GSD[g, s] @ wi[e]
        if activation == "geglu":
            hidden = F.gelu(x_GSD[g, s] @ torch.from_numpy(vector["wi_gate"])[e], approximate="tanh") * hidden
        out[g, s] = choice.gate_TK.view(shape)[g, s] * ((hidden.relu() if activation == "relu" else hidden) @ wo[e])
    aux = balance_loss(choice.balance[0].probs_GE, count_GKE[:, 0]) / shape[0]
    z = router_z_loss(choice.routed.log_z_T, *places(shape)[:2], count_GKE[:, 0]) / shape[0]
    assert count_GKE.shape[2] == experts
    loss = (out * torch.from_numpy(vector["dout"])).sum() + float(vector["alpha"]) * aux + float(vector["zc"]) * z
    return loss, plan, choice.gate_TK.view(shape)


@pytest.mark.parametrize("activation", ["relu", "geglu"])
@pytest.mark.parametrize("capacity", [24, 4])
def test_gradient_of_a_layers_logits(golden, activation, capacity):
    vector = golden(f"moe_{activation}_cap{capacity}")
    logits_GSE = (torch.from_numpy(vector["x"]) @ torch.from_numpy(vector["Wr"])).requires_grad_()
    loss, plan, gate_GS = layer_by_hand(vector, activation, logits_GSE)
    loss.backward()
    np.testing.assert_allclose(logits_GSE.grad, vector["dlogits"], atol=1e-14)
    np.testing.assert_array_equal(logits_GSE.detach().argmax(-1), vector["index"])
    np.testing.assert_array_equal(plan.kept_GSK[..., 0], vector["kept"] == 1)
    np.testing.assert_array_equal(plan.position_GSK[..., 0], vector["position"])
    np.testing.assert_allclose(gate_GS.detach(), vector["gate"], rtol=1e-12)
