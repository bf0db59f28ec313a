"""AdamW over the flat segments, by torch's own functional form (fused where the device has it)."""

from collections.abc import Iterator

import torch
from torch.optim.adamw import adamw

from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.optimizer import StateTensor


class AdamW:
    """Adam with decoupled weight decay; moments are as wide as the masters and cut like them."""

    def __init__(self, buckets: Buckets, config: OptimConfig) -> None:
        self.buckets, self.config = buckets, config
        self.first = [torch.zeros_like(b.master) for b in buckets.buckets]
        self.second = [torch.zeros_like(b.master) for b in buckets.buckets]

    @torch.no_grad()
    def step(self, lr: float, count: int) -> None:
        """Update number `count` (from 1)."""
        config = self.config
        for bucket, first, second in zip(self.buckets.buckets, self.first, self.second, strict=True):
            adamw(
                [bucket.master],
                [bucket.grad_segment],
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

    def state(self) -> Iterator[StateTensor]:
        """Both moments, cut like the masters."""
        for name, moments in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
            for bucket, moment in zip(self.buckets.buckets, moments, strict=True):
                for piece in bucket.pieces:
                    spec, primary = piece.entry.spec, bucket.axes.primary
                    yield StateTensor(f"{name}/{spec.name}", spec.shape, piece.box, piece.view(moment), primary)
