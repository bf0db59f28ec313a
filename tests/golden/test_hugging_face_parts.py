"""What Hugging Face recorded inside the six small models: the encoder's output, router logits, losses by layer, and
its own way to sum them, which is a reference here and offered to nobody."""

import json

import numpy as np
import pytest
import torch
from golden.hugging_face import LOGITS, MODELS, SWITCH, arrays, convert, far, folder
from torch import Tensor
from torch.nn import functional as F

import megaswitch
from megaswitch.layers.moe.router import Router

STACKS = {"enc": "encoder", "dec": "decoder"}


def logits_of(io: dict[str, Tensor], stack: str) -> list[Tensor]:
    """[B, L, E] of each Switch layer of a stack."""
    return [io[key].double() for key in sorted(io) if key.startswith(f"router_logits_{stack}")]


def balance(logits_BLE: Tensor) -> Tensor:
    """E x sum_i f_i P_i for each sequence, [B]."""
    experts = logits_BLE.shape[-1]
    chosen = F.one_hot(logits_BLE.argmax(-1), experts).double()
    return experts * (chosen.mean(1) * logits_BLE.softmax(-1).mean(1)).sum(-1)


def z(logits_BLE: Tensor) -> Tensor:
    return logits_BLE.logsumexp(-1).square()


@pytest.mark.parametrize("name", MODELS)
def test_encoder_output_and_router_logits(tmp_path, name):
    assert convert("import", folder(name), tmp_path / "ours") == 0
    model, io, seen = megaswitch.load(tmp_path / "ours"), arrays(name, "io.npz"), []
    model.encoder.register_forward_hook(lambda _, inputs, carry: seen.append(carry["memory"]))
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router in routers:
        router.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0] @ module.weight_DE))
    with torch.no_grad():
        model(io["input_ids"], io["decoder_input_ids"], io["attention_mask"])
    expected = [key for stack in STACKS for key in sorted(io) if key.startswith(f"router_logits_{stack}")]
    assert len(seen) == 1 + len(expected) and len(routers) == len(expected)
    in_encoder = sum(key.startswith("router_logits_enc") for key in expected)
    memory = seen.pop(in_encoder)  # the encoder's own hook runs after those of its routers
    real = io["attention_mask"].bool()
    assert far(io["encoder_last_hidden_state"][real], memory[real]) < LOGITS
    for key, found in zip(expected, seen, strict=True):
        assert far(io[key], found.view(io[key].shape)) < 1e-5, key


@pytest.mark.parametrize("name", MODELS)
def test_cross_entropy(name):
    io = arrays(name, "io.npz")
    ce = F.cross_entropy(io["logits"].double().flatten(0, 1), io["labels"].flatten(), ignore_index=-100)
    assert ce.item() == pytest.approx(io["ce"].item(), rel=1e-6)
    if name not in SWITCH:
        assert io["hf_loss"].item() == pytest.approx(ce.item(), rel=1e-6)


@pytest.mark.parametrize("name", SWITCH)
def test_losses_by_layer_and_their_sum(name):
    """The paper's: 0.01 for each layer, each routing group (here a sequence) by itself."""
    io = arrays(name, "io.npz")
    layers = [logits for stack in STACKS for logits in logits_of(io, stack)]
    np.testing.assert_allclose([balance(x).mean() for x in layers], io["aux_per_layer"], rtol=1e-6)
    np.testing.assert_allclose([z(x).mean() for x in layers], io["z_per_layer"], rtol=1e-6)
    expected = io["ce"].double() + 0.01 * sum(balance(x).mean() for x in layers)
    assert io["switch_loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", SWITCH)
def test_hugging_faces_own_sum_is_another(name):
    """All layers of a stack as one long sequence, with one f and one P; and nothing where every layer is sparse."""
    io, config = arrays(name, "io.npz"), json.loads((folder(name) / "config.json").read_text())
    total = io["ce"].double()
    for short, stack in STACKS.items():
        joined, ignored = torch.cat(logits_of(io, short), 1), config[f"{stack}_sparse_step"] == 1
        aux, z_loss = (0.0, 0.0) if ignored else (balance(joined).mean().item(), z(joined).mean().item())
        assert io[f"hf_{stack}_aux_loss"].item() == pytest.approx(aux, rel=1e-6)
        assert io[f"hf_{stack}_z_loss"].item() == pytest.approx(z_loss, rel=1e-6)
        total += config["router_aux_loss_coef"] * aux + config["router_z_loss_coef"] * z_loss
    assert io["hf_loss"].item() == pytest.approx(total.item(), rel=1e-6)
