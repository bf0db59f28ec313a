"""What `megaswitch info` tells: what a preset's model consists of; nothing is allocated."""

from dataclasses import asdict
from typing import Any

from megaswitch.model.config import STACKS, ModelConfig, capacity
from megaswitch.model.flops import flops_per_sequence
from megaswitch.model.presets import presets
from megaswitch.model.published import PUBLISHED
from megaswitch.model.units import param_specs
from megaswitch.params.derive import active, count


def describe(preset: str) -> dict[str, Any]:
    """Parameters (by part, in total, and active for a token), forward FLOPs of a sequence (as the paper counts), the
    capacities, and "published" where the paper prints figures of the model."""
    config = ModelConfig(**presets()[preset]["model"])
    specs = param_specs(config).values()
    counts = count(specs)
    total = counts.pop("total")
    tokens = {stack: config.length(stack) * config.group_size(stack) for stack in STACKS}
    slots = {
        stack: capacity(
            config.capacity_factor, tokens[stack], config.num_experts, config.min_capacity, config.capacity_rounding
        )
        for stack in STACKS
        if config.num_sparse(stack)
    }
    facts = {
        "preset": preset,
        "parameters": {"total": total, "active": active(specs), "by_part": counts},
        "flops_per_sequence": flops_per_sequence(config),
        "tokens_of_a_group": {stack: tokens[stack] for stack in slots},
        "capacity": slots,
    }
    return facts | ({"published": asdict(PUBLISHED[preset])} if preset in PUBLISHED else {})


def as_text(facts: dict[str, Any]) -> str:
    """What `describe` found, a line a fact, with the paper's figure beside."""
    parameters, published = facts["parameters"], facts.get("published", {})
    lines = [f"{part:<16}{number:>22,}" for part, number in parameters["by_part"].items() if number]
    lines.append(f"{'total':<16}{parameters['total']:>22,}{_beside(published, 'parameters')}")
    lines.append(f"{'active':<16}{parameters['active']:>22,}")
    flops = f"{facts['flops_per_sequence']:.4g}"
    lines.append(f"{'forward FLOPs':<16}{flops:>22}{_beside(published, 'flops_per_sequence')}")
    lines += [
        f"{stack}: {slots} slots an expert for a group of {facts['tokens_of_a_group'][stack]} tokens"
        for stack, slots in facts["capacity"].items()
    ]
    return "\n".join([f"{facts['preset']}", *lines]) + "\n"


def _beside(published: dict[str, Any], key: str) -> str:
    if published.get(key) is None:
        return ""
    return f"   paper: {_rounded(published[key])} ({published['source']})"


def _rounded(number: float) -> str:
    """As papers write numbers: 223M, 7.41B, 6.3T."""
    scale, unit = next(((s, u) for s, u in ((1e12, "T"), (1e9, "B")) if number >= s), (1e6, "M"))
    return f"{number / scale:g}{unit}"
