"""Linear maps over tensor-parallel shards, weights stored [in, out] and without bias.

Both are used inside a region (see region.py): a column-parallel map has its shard of the outputs, a
row-parallel one its shard of the inputs, whose products are summed when the region is left.

B sequences, L tokens, I inputs, O outputs.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from megaswitch.layers.weight_work import WeightWork, product
from megaswitch.params.spec import Init, ParamSpec, Part


def linear_spec(
    name: str, shape: tuple[int, int], init: Init, part: Part, parallel: Literal["column", "row"]
) -> ParamSpec:
    """A matrix [in, out] cut by tp along its outputs ("column") or its inputs ("row")."""
    return ParamSpec(name, shape, init, part, shards=(("tp", 1 if parallel == "column" else 0),))


class Linear(nn.Module):
    """x W with this rank's shard of W, whatever its type in x's."""

    def __init__(self, name: str, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.weight_IO = params[name]

    def forward(self, x_BLI: Tensor, work: WeightWork) -> Tensor:
        return product(x_BLI, self.weight_IO, work)
