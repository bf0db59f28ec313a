"""What `megaswitch info` tells: what a preset's model consists of; nothing is allocated."""

from typing import Any

from megaswitch.model.config import STACKS, ModelConfig, capacity
from megaswitch.model.flops import flops_per_sequence
from megaswitch.model.presets import presets
from megaswitch.model.units import param_specs
from megaswitch.params.derive import count


def describe(preset: str) -> dict[str, Any]:
    """Parameters by part and in total, forward FLOPs of a sequence (as the paper counts), and the capacities."""
    config = ModelConfig(**presets()[preset]["model"])
    counts = count(param_specs(config).values())
    total = counts.pop("total")
    tokens = {stack: config.length(stack) * config.group_size(stack) for stack in STACKS}
    slots = {
        stack: capacity(
            config.capacity_factor, tokens[stack], config.num_experts, config.min_capacity, config.capacity_rounding
        )
        for stack in STACKS
        if config.num_sparse(stack)
    }
    return {
        "preset": preset,
        "parameters": {"total": total, "by_part": counts},
        "flops_per_sequence": flops_per_sequence(config),
        "tokens_of_a_group": {stack: tokens[stack] for stack in slots},
        "capacity": slots,
    }


def as_text(facts: dict[str, Any]) -> str:
    """What `describe` found, a line a fact."""
    parts = {name: number for name, number in facts["parameters"]["by_part"].items() if number}
    lines = [f"{name:<12}{number:>22,}" for name, number in {**parts, "total": facts["parameters"]["total"]}.items()]
    lines.append(f"forward FLOPs per sequence {facts['flops_per_sequence']:.4g}")
    lines += [
        f"{stack}: {slots} slots an expert for a group of {facts['tokens_of_a_group'][stack]} tokens"
        for stack, slots in facts["capacity"].items()
    ]
    return "\n".join([f"{facts['preset']}", *lines]) + "\n"
