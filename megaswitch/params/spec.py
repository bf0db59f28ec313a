"""ParamSpec: the one place that says what a parameter is. Everything else about it is derived (see `derive.py`)."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from megaswitch.topology.grid import AxisName

Part = Literal["embed", "lm_head", "relbias", "norms", "attn", "dense_ffn", "experts", "router"]
PARTS: tuple[Part, ...] = ("embed", "lm_head", "relbias", "norms", "attn", "dense_ffn", "experts", "router")


@dataclass(frozen=True)
class Init:
    """How a tensor is drawn: "normal" or "truncated" (beyond two deviations; `std` is that of the draw before
    truncation is corrected for, so the result has `std`), "uniform" with that deviation, or "ones"."""

    kind: Literal["normal", "truncated", "uniform", "ones"]
    std: float = 1.0


@dataclass(frozen=True)
class ParamSpec:
    """One unfused logical tensor, weights stored [in, out].

    Args:
        name: global name, the same on every rank and layout.
        shape: global shape, without any padding.
        init: how it is drawn.
        part: the heading under which it is counted.
        shards: which axis cuts which dimension.
        expert: whether dimension 0 counts experts: drawn and factored expert by expert, summed over edp.
        decay: whether weight decay applies.
        tp_partial: when each tp rank's gradient, of a tensor that tp does not cut, is only a part of the sum:
            "never", under "sequence_parallel" (norms, which see a part of the tokens), or "always" (routers).
    """

    name: str
    shape: tuple[int, ...]
    init: Init
    part: Part
    shards: tuple[tuple[AxisName, int], ...] = ()
    expert: bool = False
    decay: bool = True
    tp_partial: Literal["never", "sequence_parallel", "always"] = "never"

    @property
    def size(self) -> int:
        """Elements of the whole tensor."""
        return prod(self.shape)

    @property
    def data_axis(self) -> AxisName:
        """The axis over which the tensor is replicated and its gradient summed."""
        return "edp" if self.expert else "dp"
