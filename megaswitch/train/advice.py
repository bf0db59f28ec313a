"""What is allowed and yet unwise in a configuration. Pure, like `check`."""

from megaswitch.model.config import STACKS, ModelConfig, Stack
from megaswitch.train.config import RunConfig

FEWEST_TOKENS = 300
"""Tokens of an expert and pass below which a GPU reads the expert's weights for longer than it multiplies."""


def served_choices(model: ModelConfig) -> int:
    """Experts that serve one token, at most."""
    if model.router == "top2":
        return 1 if model.second_policy == "none" else 2
    return min(model.router_choices, model.num_experts) if model.router == "noisy_topk" else 1


def tokens_per_expert(config: RunConfig) -> dict[Stack, float]:
    """Tokens that each expert of a stack's Switch layers is given in one pass, when all are wanted alike: those of one
    micro-batch of every rank on the ep axis, of which tp ranks share one unless they share the experts (etp) too."""
    model, layout = config.model, config.layout
    microbatches = layout.ep if layout.etp > 1 else layout.ep / layout.tp
    found: dict[Stack, float] = {}
    for stack in STACKS:
        if model.num_sparse(stack):
            tokens = microbatches * config.train.micro_batch * model.length(stack) * served_choices(model)
            found[stack] = tokens / model.num_experts
    return found


def advice(config: RunConfig) -> list[str]:
    """A line for each thing that had better be changed."""
    return [
        f"an expert of the {stack} is given {tokens:.0f} tokens a pass, fewer than {FEWEST_TOKENS}: reading its "
        "weights takes longer than multiplying by them; raise train.micro_batch or layout.ep, or lower layout.tp"
        for stack, tokens in tokens_per_expert(config).items()
        if tokens < FEWEST_TOKENS
    ]
