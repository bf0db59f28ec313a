"""Options of routers that do nothing, or nothing good, together."""

from collections.abc import Iterator
from dataclasses import fields

from megaswitch.model.config import ModelConfig
from megaswitch.train.config import RunConfig
from megaswitch.utils.problem import Problem

# Keys that only some routers read.
_READ_BY = {
    "exploration": ("switch",),
    "second_policy": ("top2",),
    "second_threshold": ("top2",),
    "second_place_loss": ("top2",),
    "router_choices": ("noisy_topk", "ntlb"),
}
_DEFAULTS = {f.name: f.default for f in fields(ModelConfig)}


def router_problems(config: RunConfig) -> Iterator[Problem]:
    """Options that the chosen router does not read, choices it cannot make, and precisions that diverge."""
    model = config.model
    for key, routers in _READ_BY.items():
        value = getattr(model, key)
        if value != _DEFAULTS[key] and model.router not in routers:
            remedy = f"leave it at {_DEFAULTS[key]}, or choose model.router={' or '.join(routers)}"
            yield Problem(f"model.{key}", f"= {value} means nothing to model.router = {model.router}", remedy)
    if model.num_experts:
        yield from _choices(model)
    elif model.expert_attention:
        yield Problem("model.expert_attention", "is on, but the model has no experts", "set model.num_experts")
    yield from precision_problems(model, bfloat16=config.train.dtype == "bfloat16")


def precision_problems(model: ModelConfig, *, bfloat16: bool) -> Iterator[Problem]:
    """Options that diverge in bfloat16, which `train.dtype` = auto becomes on a GPU."""
    if model.expert_attention and bfloat16 and not model.expert_attention_in_bfloat16:
        message = "diverges in train.dtype = bfloat16 (paper, appendix A)"
        remedy = "train in float32, or accept it with model.expert_attention_in_bfloat16=true"
        yield Problem("model.expert_attention", message, remedy)


def _choices(model: ModelConfig) -> Iterator[Problem]:
    """No more choices than experts."""
    wanted = {"switch": 1, "top2": 2}.get(model.router, model.router_choices)
    if not 1 <= wanted <= model.num_experts:
        message = f"= {model.router} takes {wanted} of {model.num_experts} experts"
        yield Problem("model.router", message, "give more experts, or fewer model.router_choices")
