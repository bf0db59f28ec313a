"""Forward FLOPs as the paper counts them (footnote 7): 2 per weight and token, with the attention products.

512 encoder and 114 decoder tokens a sequence; keys and values of cross-attention are counted at the decoder's
length; no router, no capacity padding, no softmax.
"""

from typing import Literal

from megaswitch.model.config import STACKS, ModelConfig, Stack


def _attention(config: ModelConfig, tokens: int, context: int) -> float:
    weights = 4 * config.d_model * config.inner_dim
    return 2.0 * weights * tokens + 2.0 * context * config.inner_dim * tokens


def unit_flops(
    config: ModelConfig, kind: Literal["embed", "block", "norm"], stack: Stack, layer: int, *, router: bool = False
) -> float:
    """Forward FLOPs of one unit for one sequence; `router` adds the routers, which the paper leaves out."""
    tokens = config.length(stack)
    if kind == "embed":
        return 0.0
    if kind == "norm":
        return 2.0 * config.vocab_size * config.d_model * tokens if stack == "decoder" else 0.0
    matrices = 3 if config.activation == "geglu" else 2
    flops = 2.0 * matrices * config.d_model * config.d_ff * tokens + _attention(config, tokens, tokens)
    if stack == "decoder":
        flops += _attention(config, tokens, config.encoder_length)
    if router and config.is_sparse(stack, layer):
        flops += 2.0 * config.d_model * config.num_experts * tokens
    return flops


def flops_per_sequence(config: ModelConfig, *, router: bool = False) -> float:
    """Forward FLOPs of one sequence through the whole model; a training step costs three times that."""
    blocks = [(stack, i) for stack in STACKS for i in range(config.num_layers(stack))]
    of_blocks = sum(unit_flops(config, "block", stack, i, router=router) for stack, i in blocks)
    return of_blocks + unit_flops(config, "norm", "decoder", 0)
