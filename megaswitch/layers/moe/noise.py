"""Random numbers for the tokens of one router, by sample, position and feature.

T local tokens (B sequences x L positions of this tp rank), F features.
"""

from dataclasses import dataclass

from torch import Tensor

from megaswitch.layers.context import Context
from megaswitch.ops.reference.router import Jitter


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
        return self.ctx.ops.features_uniform(self._states(site), 0, width)

    def jitter(self, size: float) -> Jitter:
        """Multiplication of the tokens by numbers from 1 - size to 1 + size."""
        return Jitter(self._states("jitter"), size)

    def _states(self, site: str) -> Tensor:
        return self.ctx.rows(f"{self.name}.{site}", self.ctx.positions(self.length, split=True)).flatten()
