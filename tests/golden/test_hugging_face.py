"""The whole model against logits and gradients that Hugging Face computed with the same weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.model.units import param_specs

MODELS = ("nodrop", "drop", "allsparse_untied", "long", "t5_v10", "t5_v11")
LOGITS, GRADIENTS = 2e-6, 1e-5  # max|a - b| / max|a|, float32


def folder(name: str) -> Path:
    root = os.environ.get("MEGASWITCH_GOLDEN") or Path(__file__).parent / "vectors"
    return Path(root) / f"hf_tiny_{name}"


def config_of(hf: dict, io: dict, untied: bool) -> ModelConfig:
    experts = hf.get("num_experts", 0)
    return ModelConfig(
        vocab_size=hf["vocab_size"],
        d_model=hf["d_model"],
        d_ff=hf["d_ff"],
        d_kv=hf["d_kv"],
        num_heads=hf["num_heads"],
        num_encoder_layers=hf["num_layers"],
        num_decoder_layers=hf["num_decoder_layers"],
        num_experts=experts,
        num_sparse_encoder_layers=hf.get("num_sparse_encoder_layers", 0),
        num_sparse_decoder_layers=hf.get("num_sparse_decoder_layers", 0),
        activation="geglu" if hf.get("is_gated_act") else "relu",
        tied_embeddings=not untied,
        encoder_length=io["input_ids"].shape[1],
        decoder_length=io["labels"].shape[1],
        eval_capacity_factor=1e-9,  # so that the fixed number of slots is what counts
        capacity_factor=1e-9,
        min_capacity=hf.get("expert_capacity", 0),
        route_padding=True,
    )


def hf_names(name: str, config: ModelConfig) -> list[str]:
    """Hugging Face's tensors that make up one of ours: one, or one an expert."""
    if name in ("embedding", "head"):
        return ["shared.weight" if name == "embedding" else "lm_head.weight"]
    stack, rest = name.split(".", 1)
    if rest == "norm":
        return [f"{stack}.final_layer_norm.weight"]
    if rest == "relative_bias":
        return [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    _, layer, sublayer, *leaf = rest.split(".")
    number = {"attention": 0, "cross_attention": 1}.get(sublayer, 1 if stack == "encoder" else 2)
    prefix = f"{stack}.block.{layer}.layer.{number}"
    if leaf == ["norm"]:
        return [f"{prefix}.layer_norm.weight"]
    if sublayer.endswith("attention"):
        module = "SelfAttention" if sublayer == "attention" else "EncDecAttention"
        return [f"{prefix}.{module}.{leaf[0]}.weight"]
    if leaf == ["router"]:
        return [f"{prefix}.mlp.router.classifier.weight"]
    if leaf[0] == "experts":
        return [f"{prefix}.mlp.experts.expert_{e}.{leaf[1]}.weight" for e in range(config.num_experts)]
    if config.num_experts:
        return [f"{prefix}.mlp.{leaf[0]}.weight"]
    gated = {"wi_gate": "wi_0", "wi": "wi_1"} if config.activation == "geglu" else {}
    return [f"{prefix}.DenseReluDense.{gated.get(leaf[0], leaf[0])}.weight"]


def ours(name: str, config: ModelConfig, tensors: dict[str, Tensor]) -> Tensor:
    """One of our tensors, [in, out], from Hugging Face's [out, in]."""
    parts = [tensors[n] for n in hf_names(name, config)]
    if name == "embedding" or name.endswith("relative_bias"):
        return parts[0]
    parts = [p.t() if p.dim() == 2 else p for p in parts]
    return torch.stack(parts) if ".experts." in name else parts[0]


def load(name: str) -> tuple[SwitchTransformer, dict[str, nn.Parameter], dict[str, Tensor]]:
    files = folder(name)
    io = {k: torch.from_numpy(v) for k, v in np.load(files / "io.npz").items()}
    tensors = load_file(files / "model.safetensors")
    untied = "lm_head.weight" in tensors and not torch.equal(tensors["lm_head.weight"], tensors["shared.weight"])
    config = config_of(json.loads((files / "config.json").read_text()), io, untied)
    params = {n: nn.Parameter(ours(n, config, tensors).clone()) for n in param_specs(config)}
    return SwitchTransformer(config, params).eval(), params, io


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / a.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
    model, _, io = load(name)
    out = model(io["input_ids"], io["decoder_input_ids"], io["attention_mask"])
    assert far(io["logits"], out.logits) < LOGITS
    if "aux_per_layer" in io:
        np.testing.assert_allclose(list(out.aux_losses.values()), io["aux_per_layer"], rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_cross_entropy(name):
    model, params, io = load(name)
    out = model(io["input_ids"], io["decoder_input_ids"], io["attention_mask"])
    ce = F.cross_entropy(out.logits.flatten(0, 1), io["labels"].flatten(), ignore_index=-100)
    ce.backward()
    check_gradients(model, params, folder(name) / "grads_ce.npz")


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("t5")])
def test_gradients_with_the_load_balancing_loss(name):
    model, params, io = load(name)
    model.train()  # auxiliary losses attach in training only; without dropout and jitter nothing else changes
    out = model(io["input_ids"], io["decoder_input_ids"], io["attention_mask"])
    ce = F.cross_entropy(out.logits.flatten(0, 1), io["labels"].flatten(), ignore_index=-100)
    ce.backward()
    check_gradients(model, params, folder(name) / "grads_switch.npz")


def check_gradients(model: SwitchTransformer, params: dict[str, nn.Parameter], file: Path) -> None:
    published = {k: torch.from_numpy(v) for k, v in np.load(file).items()}
    wrong = {}
    for name, parameter in params.items():
        for missing in set(hf_names(name, model.config)) - published.keys():  # an expert that got no token
            published[missing] = torch.zeros(tuple(reversed(parameter.shape[-2:])))
        expected = ours(name, model.config, published)
        assert parameter.grad is not None, name
        if expected.abs().max() > 0:
            wrong[name] = far(expected, parameter.grad)
    assert max(wrong.values()) < GRADIENTS, {n: v for n, v in wrong.items() if v >= GRADIENTS}


def test_the_table_of_names_covers_every_tensor():
    for name in MODELS:
        model, params, _ = load(name)
        used = {n for p in params for n in hf_names(p, model.config)}
        stored = set(load_file(folder(name) / "model.safetensors"))
        aliases = {"lm_head.weight", *(f"{stack}.embed_tokens.weight" for stack in STACKS)}
        assert stored - used <= aliases
