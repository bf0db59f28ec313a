"""What one pass of a micro-batch through the model needs besides tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.config import Recompute, Stack
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.dropout import RowDrop
from megaswitch.ops.reference.random import start
from megaswitch.topology.topology import Topology
from megaswitch.utils.seeds import named_seed


@dataclass(frozen=True)
class Context:
    """One micro-batch's pass.

    Args:
        topology: this process's place.
        training: whether dropout, jitter and the training capacity apply, and auxiliary losses attach.
        seed: the run's seed.
        step: the step, for dropout and jitter.
        samples_B: global sample number of each row, int64.
        num_targets: real targets of the whole global batch, the loss's denominator.
        num_groups: routing groups of the whole global batch, by stack, the aux losses' denominator.
        recompute: which activations are computed again in the backward, of a stack's own passes (see `of`).
        recompute_decoder: the same for the decoder; None: as in the encoder.
        work: weight gradients to compute, while a collective is under way or later.
        ops: the implementations of the operations.
        padded: whether tokens travel to experts with fixed splits, empty slots filled with zeros.
        dropless: whether nothing is dropped whatever the capacity factors say (generation).
        lengths: tokens of a sequence by stack that capacities go by; None: the configured ones.
    """

    topology: Topology
    training: bool
    seed: int
    step: int
    samples_B: Tensor
    num_targets: float
    num_groups: dict[Stack, float]
    recompute: Recompute = "none"
    recompute_decoder: Recompute | None = None
    work: WeightWork = field(default_factory=WeightWork)
    ops: Ops = field(default_factory=Ops)
    padded: bool = False
    dropless: bool = False
    lengths: dict[Stack, int] | None = None

    def of(self, stack: Stack) -> "Context":
        """This context for a block of that stack."""
        if stack == "encoder" or self.recompute_decoder in (None, self.recompute):
            return self
        return replace(self, recompute=self.recompute_decoder)

    def positions(self, length: int, split: bool) -> Tensor:
        """Global positions of `length` local ones; `split` when tp ranks hold consecutive parts of the sequence."""
        first = self.topology.tp.rank * length if split else 0
        return torch.arange(first, first + length, device=self.samples_B.device)

    def rows(self, site: str, *counters: Tensor) -> Tensor:
        """Random states [B, ...] for a named place in the model, one dimension a counter."""
        state = start(named_seed(self.seed, "noise", self.step, site), self.samples_B.device)
        return self.ops.states(state, (self.samples_B, *counters))

    def again(self, where: Literal["block", "core"], function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), whose inner activations are dropped and computed again where `recompute` says so."""
        wanted = self.recompute == ("full" if where == "block" else "selective")
        if not wanted or not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def row_drop(
    x_BLF: Tensor, rate: float, site: str, ctx: Context, *, split: bool, first_feature: int = 0
) -> RowDrop | None:
    """Dropout by (sample, position, feature), None where there is none; `split` and `first_feature` say which part of
    the whole `x_BLF` is."""
    if not ctx.training or rate == 0.0:
        return None
    states_BL = ctx.rows(site, ctx.positions(x_BLF.shape[1], split))
    return RowDrop(states_BL.flatten(), rate, first_feature)


def dropout(x_BLF: Tensor, rate: float, site: str, ctx: Context, *, split: bool, first_feature: int = 0) -> Tensor:
    """`x_BLF` with `row_drop`."""
    return ctx.ops.dropped(x_BLF, row_drop(x_BLF, rate, site, ctx, split=split, first_feature=first_feature))
