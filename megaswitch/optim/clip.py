"""The global gradient norm, each logical parameter once, and clipping by it."""

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_reduce_
from megaswitch.optim.buckets import Buckets


@torch.no_grad()
def gradient_norm(buckets: Buckets) -> Tensor:
    """Euclidean norm over all parameters of the model, from the reduced segments; a scalar, equal on all ranks."""
    first = buckets.buckets[0].master
    total = torch.zeros((), dtype=first.dtype, device=first.device)
    for bucket in buckets.buckets:
        if bucket.axes.primary:
            total += bucket.wide_gradient().square().sum()
    return all_reduce_(total, buckets.topology.world).sqrt_()


@torch.no_grad()
def clip_(buckets: Buckets, norm: Tensor, limit: float) -> None:
    """Scale all gradient segments so that the norm is at most `limit`; 0 means no clipping."""
    if limit > 0.0:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for bucket in buckets.buckets:
            bucket.grad_segment.mul_(scale)
