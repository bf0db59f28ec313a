"""The record of a step: one vector of the same shape on every rank, every number a share of a sum over ranks."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_reduce_
from megaswitch.layers.moe.statistics import STATISTICS
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import Unit, switch_names
from megaswitch.topology.topology import Axis
from megaswitch.utils.host import host_read

TOKENS = ("nll", "z", "targets", "content_nll", "content_targets")
"""Sums over target tokens; "content" leaves out EOS and sentinels."""
_STOP = len(TOKENS)
_SQUARES = _STOP + 1
_HEAD = _SQUARES + 1


class Record:
    """Accumulates what stages report of a step.

    The vector holds TOKENS, the number of ranks that want to stop, the sum of squares of the gradients, then for each
    Switch layer of the model (encoder first) STATISTICS and the tokens that wanted each expert.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        rows = switch_names(config)
        self.names = [name for _, name in rows]
        self.first_row = {unit: i for i, (unit, _) in reversed(list(enumerate(rows)))}
        self.width = len(STATISTICS) + config.num_experts
        # float64: counts must stay whole, and sums keep what float32 terms have
        self.vector = torch.zeros(_HEAD + len(self.names) * self.width, device=device, dtype=torch.float64)

    def ask_to_stop(self, wish: bool) -> None:
        """Tell the others whether this process wants to end after the step."""
        self.vector[_STOP].fill_(float(wish))

    def add_squares(self, squares: Tensor) -> None:
        """Add this rank's share of the squares of all gradients, a scalar."""
        self.vector[_SQUARES] += squares

    def add_tokens(self, sums: Tensor) -> None:
        """Add sums in the order of TOKENS."""
        self.vector[: len(TOKENS)] += sums.detach()

    def add_layer(self, unit: Unit, statistics: Tensor) -> None:
        """Add the statistics of a block's Switch layers, end to end."""
        first = _HEAD + self.first_row[unit] * self.width
        self.vector[first : first + statistics.numel()] += statistics.detach()

    def layer_values(self, name: str) -> list[float]:
        """One statistic of each Switch layer, as far as this process has added to it."""
        rows = self.vector[_HEAD:].view(len(self.names), self.width)
        return [float(v) for v in host_read("layer_values", rows[:, STATISTICS.index(name)])]

    def summed(self, world: Axis) -> "StepRecord":
        """The sums over all ranks (one all-reduce), read by the host."""
        values = host_read("record", all_reduce_(self.vector, world))
        head, rest = values[: len(TOKENS)], values[_HEAD:]
        rows = [rest[i * self.width : (i + 1) * self.width] for i in range(len(self.names))]
        layers = {
            name: LayerRecord(**dict(zip(STATISTICS, row, strict=False)), load=row[len(STATISTICS) :])
            for name, row in zip(self.names, rows, strict=True)
        }
        sums = dict(zip(TOKENS, head, strict=True))
        return StepRecord(**sums, stops=values[_STOP], squares=values[_SQUARES], layers=layers)


@dataclass(frozen=True)
class LayerRecord:
    """One Switch layer over the global batch: `aux` and `z` before their coefficients, tokens dropped and
    routed, sum of the router's entropies (nats), and tokens that wanted each expert."""

    aux: float
    z: float
    dropped: float
    routed: float
    entropy: float
    load: list[Any]


@dataclass(frozen=True)
class StepRecord:
    """Sums over the global batch, and the Switch layers by name."""

    nll: float
    z: float
    targets: float
    content_nll: float
    content_targets: float
    stops: float
    squares: float
    layers: dict[str, LayerRecord]

    @property
    def grad_norm(self) -> float:
        """Euclidean norm of the gradients of all parameters, before clipping."""
        return sqrt(self.squares)

    @property
    def mean_nll(self) -> float:
        """Cross-entropy per real target, nats, without z-loss and aux losses."""
        return self.nll / max(self.targets, 1.0)

    @property
    def dropped_share(self) -> float:
        """Dropped over routed real tokens, all Switch layers."""
        routed = sum(layer.routed for layer in self.layers.values())
        return sum(layer.dropped for layer in self.layers.values()) / routed if routed else 0.0

    @property
    def aux(self) -> float:
        """Load-balancing loss before its coefficient, summed over layers."""
        return float(sum(layer.aux for layer in self.layers.values()))

    @property
    def router_z(self) -> float:
        """Router z-loss before its coefficient, summed over layers."""
        return float(sum(layer.z for layer in self.layers.values()))
