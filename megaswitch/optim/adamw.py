"""AdamW over the flat segments."""

from collections.abc import Iterator

import torch

from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.adamw import AdamStep
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import Done, StateTensor, nothing


class AdamW:
    """Adam with decoupled weight decay; moments are cut like the masters, and as wide unless `optim.moment_dtype` makes
    them bfloat16 between steps."""

    def __init__(self, buckets: Buckets, config: OptimConfig, ops: Ops) -> None:
        self.buckets, self.config, self.adamw_ = buckets, config, ops.adamw_
        narrow = torch.bfloat16 if config.moment_dtype == "bfloat16" else None
        self.first = [torch.zeros_like(b.master, dtype=narrow) for b in buckets.buckets]
        self.second = [torch.zeros_like(b.master, dtype=narrow) for b in buckets.buckets]

    @torch.no_grad()
    def step(self, lr: float, count: int, done: Done = nothing) -> None:
        """Update number `count` (from 1); calls `done` with each updated bucket."""
        c = self.config
        for bucket, first, second in zip(self.buckets.buckets, self.first, self.second, strict=True):
            step = AdamStep(count, lr, c.beta1, c.beta2, c.eps, c.weight_decay if bucket.kind.decay else 0.0)
            self.adamw_(bucket.master, bucket.grad_segment, first, second, bucket.rounding(), step)
            done(bucket)

    def state(self) -> Iterator[StateTensor]:
        """Both moments, cut like the masters."""
        for name, moments in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
            for bucket, moment in zip(self.buckets.buckets, moments, strict=True):
                for piece in bucket.pieces:
                    spec, primary = piece.entry.spec, bucket.axes.primary
                    yield StateTensor(f"{name}/{spec.name}", spec.shape, piece.box, piece.view(moment), primary)
