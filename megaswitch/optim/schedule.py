"""Learning rates by step, counted from 0."""

from math import cos, pi, sqrt

from megaswitch.optim.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of a step: inverse square root without ramp (T5), constant or cosine with a linear ramp."""
    base, warmup = config.base_lr, config.warmup_steps
    if config.schedule == "rsqrt":
        return base / sqrt(max(step, warmup, 1))
    if step < warmup:
        return base * (step + 1) / warmup
    if config.schedule == "constant":
        return base
    share = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return base * (0.1 + 0.45 * (1.0 + cos(pi * share)))
