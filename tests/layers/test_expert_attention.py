"""Experts in attention against a loop over tokens (paper appendix A)."""

import torch
from torch import Tensor, nn

from megaswitch.layers.context import Context
from megaswitch.layers.expert_attention import ExpertAttention, expert_attention_specs
from megaswitch.model.config import ModelConfig
from megaswitch.model.transformer import alone
from megaswitch.ops.bias import Bias

CONFIG = ModelConfig(d_model=8, d_ff=12, d_kv=3, num_heads=2, num_experts=4, encoder_length=6, capacity_factor=None)
NAME, BATCH, LENGTH = "layer", 2, 6


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        spec.name: nn.Parameter(torch.randn(spec.shape, dtype=torch.float64, generator=generator))
        for spec in expert_attention_specs(NAME, CONFIG)
    }


def projection(params: dict[str, nn.Parameter], token_D: Tensor, output: str) -> Tensor:
    """One token's query or key, all heads' width, times its gate."""
    probs_E = torch.softmax(token_D @ params[f"{NAME}.router"], -1)
    expert = int(probs_E.argmax())
    hidden_F = torch.relu(token_D @ params[f"{NAME}.experts.wi"][expert])
    return probs_E[expert] * (hidden_F @ params[f"{NAME}.experts.{output}"][expert])


def by_loop(params: dict[str, nn.Parameter], x_BLD: Tensor) -> Tensor:
    rows = []
    for x_LD in x_BLD:
        q_LW, k_LW = (torch.stack([projection(params, t, w) for t in x_LD]) for w in ("q_wo", "k_wo"))
        heads = []
        for q_LK, k_LK in zip(q_LW.split(CONFIG.d_kv, 1), k_LW.split(CONFIG.d_kv, 1), strict=True):
            weights_LM = torch.softmax(q_LK * CONFIG.d_kv**-0.5 @ k_LK.t(), -1)
            heads.append(weights_LM @ k_LK)
        rows.append(torch.cat(heads, 1) @ params[f"{NAME}.o"])
    return torch.stack(rows)


def test_it_is_the_loop_and_so_are_its_gradients():
    params, again = parameters(), parameters()
    topology = alone(torch.device("cpu"))
    layer = ExpertAttention(NAME, CONFIG, "encoder", params, topology)
    x_BLD = torch.randn(BATCH, LENGTH, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ctx = Context(topology, False, 0, 0, torch.arange(BATCH), 1.0, {"encoder": 2.0, "decoder": 1.0})
    out, statistics = layer(x_BLD, torch.ones(BATCH, LENGTH, dtype=torch.bool), Bias(), ctx)
    expected = by_loop(again, x_BLD)
    assert (out - expected).abs().max() < 1e-13 * expected.abs().max()
    assert statistics[3] == BATCH * LENGTH
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in params.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert (parameter.grad - again[name].grad).abs().max() < 1e-12 * again[name].grad.abs().max(), name
