"""How each kind of weight is drawn, by the two published rules.

"released": the configurations that the released Switch checkpoints are trained with. The scale s covers
attention, experts and dense layers, q carries the factor d_kv^-0.5 that the logits lack, routers have a standard
deviation of their own, and a truncated draw is corrected so that it has the deviation it is asked for.

"paper": section 2.4 as Mesh TensorFlow has it: feed-forward layers, experts and routers from a truncated normal
of deviation sqrt(s / fan_in), not corrected for what truncation takes; attention is not touched by s.
"""

from math import sqrt

from megaswitch.model.config import ModelConfig
from megaswitch.params.init import TRUNCATED_STD
from megaswitch.params.spec import Init


def _truncated(config: ModelConfig, fan_in: int) -> Init:
    std = sqrt(config.init_scale / fan_in)
    return Init("truncated", std if config.init_rule == "released" else std * TRUNCATED_STD)


def dense(config: ModelConfig, fan_in: int) -> Init:
    """Dense feed-forward layers and an untied head."""
    return _truncated(config, fan_in)


def expert(config: ModelConfig, fan_in: int) -> Init:
    """Experts; `fan_in` does not count them."""
    if config.init_rule == "released":
        return Init("normal", sqrt(config.init_scale / fan_in))
    return _truncated(config, fan_in)


def router(config: ModelConfig) -> Init:
    """Routers."""
    if config.init_rule == "released":
        return Init("normal", config.router_init_std)
    return _truncated(config, config.d_model)


def projection(config: ModelConfig, which: str) -> Init:
    """The attention matrices q, k, v and o."""
    scale = config.init_scale if config.init_rule == "released" else 1.0
    std = sqrt(scale / (config.inner_dim if which == "o" else config.d_model))
    return Init("normal", std / sqrt(config.d_kv) if which == "q" else std)


def relative_bias(config: ModelConfig, num_buckets: int) -> Init:
    """The relative-position table: uniform, with variance by the mean of both sides."""
    scale = config.init_scale if config.init_rule == "released" else 1.0
    return Init("uniform", sqrt(scale / ((num_buckets + config.num_heads) / 2)))


def embedding() -> Init:
    """The token table."""
    return Init("normal", 1.0)
