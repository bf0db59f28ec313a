"""AdamW over the flat segments, by torch's own functional form (fused where the device has it)."""

from collections.abc import Iterator

import torch
from torch.optim.adamw import adamw

from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import Done, StateTensor, nothing


class AdamW:
    """Adam with decoupled weight decay; moments are cut like the masters, and as wide unless `optim.moment_dtype` makes
    them bfloat16 between steps."""

    def __init__(self, buckets: Buckets, config: OptimConfig) -> None:
        self.buckets, self.config = buckets, config
        narrow = torch.bfloat16 if config.moment_dtype == "bfloat16" else None
        self.first = [torch.zeros_like(b.master, dtype=narrow) for b in buckets.buckets]
        self.second = [torch.zeros_like(b.master, dtype=narrow) for b in buckets.buckets]

    @torch.no_grad()
    def step(self, lr: float, count: int, done: Done = nothing) -> None:
        """Update number `count` (from 1); calls `done` with each updated bucket."""
        config = self.config
        for bucket, *moments in zip(self.buckets.buckets, self.first, self.second, strict=True):
            first, second = (moment.to(bucket.master.dtype) for moment in moments)
            adamw(
                [bucket.master],
                [bucket.wide_gradient()],
                [first],
                [second],
                [],
                [torch.tensor(float(count - 1), device=first.device)],
                fused=True,
                amsgrad=False,
                beta1=config.beta1,
                beta2=config.beta2,
                lr=lr,
                weight_decay=config.weight_decay if bucket.kind.decay else 0.0,
                eps=config.eps,
                maximize=False,
            )
            for moment, wide in zip(moments, (first, second), strict=True):
                if moment.dtype != wide.dtype:
                    moment.copy_(wide)
            done(bucket)

    def state(self) -> Iterator[StateTensor]:
        """Both moments, cut like the masters."""
        for name, moments in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
            for bucket, moment in zip(self.buckets.buckets, moments, strict=True):
                for piece in bucket.pieces:
                    spec, primary = piece.entry.spec, bucket.axes.primary
                    yield StateTensor(f"{name}/{spec.name}", spec.shape, piece.box, piece.view(moment), primary)
