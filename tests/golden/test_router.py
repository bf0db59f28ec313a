"""Switch routing, its plan and its losses against the published vectors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden.routing import combine, each_alone, logits_of, places, planned
from torch import Tensor

from megaswitch.layers.moe.losses import balance_loss, router_z_loss
from megaswitch.layers.moe.router import route
from megaswitch.layers.moe.routers.switch import pick
from megaswitch.layers.moe.scores import Scores
from megaswitch.layers.moe.statistics import Tokens, aux_loss
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.dropout import jitter_by
from megaswitch.topology.topology import Axis

SWITCH = ("nodrop", "cf125", "drop", "tie")
ALONE = Axis("tp", 0, (0,))


class Given:
    """Noise as a vector gives it: the same uniform numbers whatever the site."""

    training = True

    def __init__(self, uniform: np.ndarray) -> None:
        self._uniform_TF = torch.from_numpy(uniform).flatten(0, 1)

    def uniform(self, site: str, width: int) -> Tensor:
        assert width == self._uniform_TF.shape[1]
        return self._uniform_TF


def quiet() -> SimpleNamespace:
    return SimpleNamespace(training=False)


@pytest.mark.parametrize("name", SWITCH)
def test_switch_top1(golden, name):
    vector = golden(f"router_switch_{name}")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    np.testing.assert_allclose(logits_GSE, vector["logits"], rtol=1e-12, atol=1e-14)
    shape = logits_GSE.shape[:2]
    choice = pick(Scores(logits_GSE.flatten(0, 1), each_alone(shape.numel())))
    plan, _ = planned(choice, shape, capacity, logits_GSE.shape[2])
    np.testing.assert_allclose(choice.balance[0].probs_GE.view(vector["probs"].shape), vector["probs"], rtol=1e-12)
    np.testing.assert_array_equal(choice.index_TK.view(shape), vector["index"])
    np.testing.assert_allclose(choice.gate_TK.view(shape), vector["gate"], rtol=1e-12)
    np.testing.assert_array_equal(plan.position_GSK[..., 0], vector["position"])
    np.testing.assert_array_equal(plan.kept_GSK[..., 0], vector["kept"] == 1)
    table = combine(choice, plan, capacity, logits_GSE.shape[2])
    np.testing.assert_allclose(table, vector["combine"], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(table > 0, vector["dispatch"] > 0)


@pytest.mark.parametrize("name", SWITCH)
def test_losses_and_their_gradients(golden, name):
    vector = golden(f"router_switch_{name}")
    logits_TE = torch.from_numpy(vector["logits"]).flatten(0, 1).requires_grad_()
    shape = vector["index"].shape
    choice = pick(Scores(logits_TE, places(shape)))
    _, count_GKE = planned(choice, shape, int(vector["capacity"]), logits_TE.shape[1])
    tokens = Tokens(*places(shape)[:2], count_GKE)
    aux = aux_loss(choice, tokens, ALONE).own / shape[0]
    z = router_z_loss(choice.routed.log_z_T, *tokens[:2], count_GKE[:, 0]) / shape[0]
    np.testing.assert_allclose(aux.item(), vector["aux"], rtol=1e-12)
    np.testing.assert_allclose(z.item(), vector["z"], rtol=1e-12)
    if "d_aux" in vector:
        for loss, key in ((aux, "d_aux"), (z, "d_z")):
            (grad,) = torch.autograd.grad(loss, logits_TE, retain_graph=True)
            np.testing.assert_allclose(grad.view(vector[key].shape), vector[key], atol=1e-15)


def test_padding_is_not_routed_and_not_counted(golden):
    vector = golden("router_switch_padding")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    real_GS, shape = torch.from_numpy(vector["importance"] == 1), logits_GSE.shape[:2]
    experts = logits_GSE.shape[2]
    choice = pick(Scores(logits_GSE.flatten(0, 1), places(shape, real_GS)))
    plan, count_GKE = planned(choice, shape, capacity, experts, real_GS)
    np.testing.assert_array_equal(plan.kept_GSK[..., 0], vector["kept"] == 1)
    table = combine(choice, plan, capacity, logits_GSE.shape[2])
    np.testing.assert_allclose(table, vector["combine"], rtol=1e-12, atol=1e-15)
    aux = balance_loss(choice.balance[0].probs_GE, count_GKE[:, 0]) / shape[0]
    np.testing.assert_allclose(aux.item(), vector["aux_clean"], rtol=1e-12)


def test_batch_prioritised_routing(golden):
    vector = golden("router_bpr")
    logits_GSE, capacity = logits_of(vector), int(vector["capacity"])
    shape = logits_GSE.shape[:2]
    config = ModelConfig(num_experts=logits_GSE.shape[2], router_priority="probability")
    assert config.router_priority == "probability"
    choice = pick(Scores(logits_GSE.flatten(0, 1), places(shape)))
    choice = choice._replace(priority_T=choice.gate_TK[:, 0])
    plan, count_GKE = planned(choice, shape, capacity, logits_GSE.shape[2])
    np.testing.assert_array_equal(choice.index_TK.view(shape), vector["index"])
    np.testing.assert_array_equal(plan.kept_GSK[..., 0], vector["kept"] == 1)
    table = combine(choice, plan, capacity, logits_GSE.shape[2])
    np.testing.assert_allclose(table, vector["combine"], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(table > 0, vector["dispatch"] > 0)
    order = torch.sort(choice.priority_T.view(shape), dim=1, descending=True, stable=True).indices
    np.testing.assert_array_equal(order, vector["order"])
    tokens = Tokens(*places(shape)[:2], count_GKE)
    np.testing.assert_allclose(aux_loss(choice, tokens, ALONE).share.item() / shape[0], vector["aux"], rtol=1e-12)


def test_selective_precision(golden):
    vector = golden("router_selective_precision")
    x_TD = torch.from_numpy(vector["x_bf16_as_f32"]).to(torch.bfloat16).flatten(0, 1)
    w_DE, shape, capacity = torch.from_numpy(vector["W"]), vector["index"].shape, int(vector["capacity"])
    config = ModelConfig(num_experts=w_DE.shape[1])
    choice = route(x_TD, w_DE, None, config, quiet(), each_alone(len(x_TD)))
    probs_TE = choice.balance[0].probs_GE
    assert probs_TE.dtype == torch.float32
    np.testing.assert_allclose(probs_TE.view(vector["probs_f32"].shape), vector["probs_f32"], atol=1e-6)
    np.testing.assert_array_equal(choice.index_TK.view(shape), vector["index"])
    plan, _ = planned(choice, torch.Size(shape), capacity, w_DE.shape[1])
    np.testing.assert_array_equal(plan.kept_GSK[..., 0], vector["kept"] == 1)
    narrow_gates = choice._replace(gate_TK=choice.gate_TK.to(torch.bfloat16).float())
    table = combine(narrow_gates, plan, capacity, w_DE.shape[1])
    np.testing.assert_allclose(table, vector["combine_bf16_as_f32"], rtol=1e-2)


def test_the_narrow_router_is_what_selective_precision_avoids(golden):
    vector = golden("router_selective_precision")
    x_TD = torch.from_numpy(vector["x_bf16_as_f32"]).to(torch.bfloat16).flatten(0, 1)
    w_DE = torch.from_numpy(vector["W"])
    config = ModelConfig(num_experts=w_DE.shape[1], router_dtype="narrow")
    choice = route(x_TD, w_DE, None, config, quiet(), each_alone(len(x_TD)))
    probs_TE = choice.balance[0].probs_GE
    assert probs_TE.dtype == torch.bfloat16
    probs = probs_TE.float().view(vector["probs_bf16_path"].shape)
    np.testing.assert_allclose(probs, vector["probs_bf16_path"], rtol=2**-6, atol=2**-8)  # a few units of bf16
    assert np.abs(probs.numpy() - vector["probs_f32"]).max() > 1e-4


@pytest.mark.parametrize(
    "name,options",
    [
        ("jitter", lambda _: {}),
        ("sample", lambda v: {"exploration": "sample"}),
        ("dropout", lambda v: {"router_dropout": 1.0 - float(v["dropout_keep"])}),
    ],
)
def test_exploration(golden, name, options):
    """Jitter by the vector's numbers; that the router's pass multiplies so by its own is tested with the operation."""
    vector = golden("router_exploration")
    x_GSD, w_DE, capacity = torch.from_numpy(vector["x"]), torch.from_numpy(vector["W"]), int(vector["capacity"])
    shape = x_GSD.shape[:2]
    config = ModelConfig(num_experts=w_DE.shape[1], **options(vector))
    x_TD, noise = x_GSD.flatten(0, 1), Given(vector[f"{name}_uniform"])
    if name == "jitter":
        x_TD = jitter_by(x_TD, noise.uniform("jitter", x_TD.shape[1]), float(vector["jitter_eps"]))
    choice = route(x_TD, w_DE, None, config, noise, places(shape))
    np.testing.assert_array_equal(choice.index_TK.view(shape), vector[f"{name}_index"])
    np.testing.assert_allclose(choice.gate_TK.view(shape), vector[f"{name}_gate"], rtol=1e-12)
    plan, _ = planned(choice, shape, capacity, w_DE.shape[1])
    table = combine(choice, plan, capacity, w_DE.shape[1])
    np.testing.assert_allclose(table, vector[f"{name}_combine"], rtol=1e-12, atol=1e-15)
    still = route(x_GSD.flatten(0, 1), w_DE, None, config, quiet(), places(x_GSD.shape[:2]))
    assert not torch.equal(still.gate_TK, choice.gate_TK), "exploration is for training alone"
