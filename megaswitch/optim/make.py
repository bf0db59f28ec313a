"""The optimizer that a configuration asks for."""

from megaswitch.ops.ops import Ops
from megaswitch.optim.adafactor import Adafactor
from megaswitch.optim.adamw import AdamW
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import Optimizer


def make_optimizer(buckets: Buckets, config: OptimConfig, ops: Ops) -> Optimizer:
    """Adafactor or AdamW over the buckets' segments."""
    return Adafactor(buckets, config, ops) if config.name == "adafactor" else AdamW(buckets, config, ops)
