"""The border of a tensor-parallel region: outside, tokens are split (or held alike); inside, each rank has all
tokens and its shard of the features.

B sequences, L tokens (padded to a multiple of tp), D width.

On the tp axis, s bytes a number: with sequence parallelism entering is an all-gather and leaving a reduce-scatter of
B L D s, and the other way round in the backward; without it only leaving forward and entering backward are anything,
an all-reduce of B L D s each.
"""

from dataclasses import dataclass

from torch import Tensor

from megaswitch.comm.functions import copy_to, gather_along, reduce_from, scatter_along
from megaswitch.layers.weight_work import WeightWork
from megaswitch.topology.topology import Axis, Topology


@dataclass(frozen=True)
class Region:
    """Enters and leaves tensor-parallel regions on `axis`, with the sequence split outside or not."""

    axis: Axis
    sequence_parallel: bool

    def enter(self, x_BLD: Tensor, work: WeightWork) -> Tensor:
        """All tokens on each rank; gradients, of which each rank has a part, are summed on the way back, while
        `work` is done."""
        if self.sequence_parallel:
            return gather_along(x_BLD, self.axis, 1, work.meanwhile)
        return copy_to(x_BLD, self.axis, work.meanwhile)

    def leave(self, x_BLD: Tensor) -> Tensor:
        """The sum of the ranks' parts, split along the sequence again where it was."""
        return scatter_along(x_BLD, self.axis, 1) if self.sequence_parallel else reduce_from(x_BLD, self.axis)


def region_of(topology: Topology) -> Region:
    """The border of this process's dense tensor-parallel regions."""
    return Region(topology.tp, topology.sequence_parallel)
