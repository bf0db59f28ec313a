"""Drawing weights: by global name (and expert), on the CPU in float32, then cut and cast. No rank is asked."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from megaswitch.params.boxes import Box
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.utils.seeds import named_seed

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal that is drawn again beyond two deviations."""


def _draw(init: Init, shape: Sequence[int], seed: int) -> Tensor:
    """A whole float32 tensor."""
    out = torch.empty(tuple(shape), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    if init.kind == "ones":
        return out.fill_(1.0)
    if init.kind == "uniform":
        bound = init.std * sqrt(3.0)
        return out.uniform_(-bound, bound, generator=generator)
    if init.kind == "normal":
        return out.normal_(0.0, init.std, generator=generator)
    std = init.std / TRUNCATED_STD
    return torch.nn.init.trunc_normal_(out, 0.0, std, -2 * std, 2 * std, generator=generator)


@torch.no_grad()
def initialise_(out: Tensor, spec: ParamSpec, box: Box, seed: int) -> None:
    """Fill `out`, which is `box` of the tensor, with the spec's weights for the run's `seed`.

    Holds one whole tensor (of experts, one expert) besides `out`.
    """
    if not spec.expert:
        out.copy_(_draw(spec.init, spec.shape, named_seed(seed, "weight", spec.name))[box.slices])
        return
    for i in range(box.shape[0]):
        expert = box.offset[0] + i
        whole = _draw(spec.init, spec.shape[1:], named_seed(seed, "weight", spec.name, expert))
        out[i].copy_(whole[box.slices[1:]])
