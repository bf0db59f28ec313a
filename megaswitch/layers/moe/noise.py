"""Random numbers for the tokens of one router, by sample, position and feature.

T local tokens (B sequences x L positions of this tp rank), F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.layers.context import Context


@dataclass(frozen=True)
class Noise:
    """Noise for one layer's tokens.

    Args:
        ctx: the pass.
        name: the layer.
        length: positions of this tp rank.
    """

    ctx: Context
    name: str
    length: int

    @property
    def training(self) -> bool:
        """Whether the pass trains; most noise is for training alone."""
        return self.ctx.training

    def uniform(self, site: str, width: int) -> Tensor:
        """[T, width] numbers in [0, 1), float32."""
        features = torch.arange(width, device=self.ctx.samples_B.device)
        positions = self.ctx.positions(self.length, split=True)
        return self.ctx.uniform(f"{self.name}.{site}", positions, features).flatten(0, 1)
