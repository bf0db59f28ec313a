"""The Switch layer: router, plan, dispatch, experts, and the way back (paper section 2).

Each tp rank routes its own part of every sequence, learns the choices of the others (one number a token) and
computes the group's plan redundantly. With etp = 1 it dispatches its own tokens; with etp = tp it first
gathers all tokens of its tp group, whose ranks each hold a part of every expert.

B sequences, L tokens of a sequence (all of them), l this tp rank's part, D d_model, E experts, T = B x l or B x L.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megaswitch.comm.collectives import all_gather, all_to_all, own_part
from megaswitch.comm.functions import concat_along, gather_along, scatter_along, split_along
from megaswitch.layers.context import Context
from megaswitch.layers.moe.dispatch import Route, from_experts, make_route, to_experts
from megaswitch.layers.moe.experts import Experts, expert_specs
from megaswitch.layers.moe.losses import attach, balance_loss, router_z_loss
from megaswitch.layers.moe.plan import Plan, make_plan
from megaswitch.layers.moe.router import Choice, Router, router_specs
from megaswitch.model.config import ModelConfig, Stack, capacity
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Topology

STATISTICS = ("aux", "z", "dropped", "routed", "entropy")
"""What a layer adds to the record of a step, before the number of tokens of each expert."""


def switch_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """The router and the experts."""
    return [*router_specs(f"{name}.router", config), *expert_specs(f"{name}.experts", config)]


class _Local(NamedTuple):
    """This tp rank's part of the tokens, [B, l], and what was decided about them."""

    index_Bl: Tensor
    kept_Bl: Tensor
    group_T: Tensor
    plan: Plan


class SwitchLayer(nn.Module):
    """A feed-forward layer of which each token passes through one expert."""

    def __init__(
        self, name: str, config: ModelConfig, stack: Stack, params: Mapping[str, nn.Parameter], topology: Topology
    ) -> None:
        super().__init__()
        self.name, self.config, self.stack, self.topology = name, config, stack, topology
        self.router = Router(f"{name}.router", config, params)
        self.experts = Experts(f"{name}.experts", config, params, topology.etp)

    def forward(self, x_BLD: Tensor, routed_BL: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """The layer's output, shaped and split as `x_BLD`, zero at dropped tokens, and its statistics [5 + E].

        `routed_BL` says of all positions, also of other tp ranks', which tokens are routed.
        """
        tp = self.topology.tp
        split = self.topology.sequence_parallel
        x_BlD = x_BLD if split else split_along(x_BLD, tp, 1)
        routed_Bl = own_part(routed_BL, tp, 1)
        choice = self.router(x_BlD.flatten(0, 1), self._jitter(x_BlD, ctx))
        local = self._decide(choice.index_T.view_as(routed_Bl), routed_Bl, ctx)
        y_BlD = self._through_experts(x_BlD, local, ctx)
        gate_Bl = torch.where(local.kept_Bl, choice.gate_T.view_as(local.kept_Bl), 0.0)
        y_BlD = y_BlD * gate_Bl.to(y_BlD.dtype).unsqueeze(-1)
        y_BlD, statistics = self._losses(y_BlD, choice, local, routed_Bl.flatten(), ctx)
        return (y_BlD if split else concat_along(y_BlD, tp, 1)), statistics

    def _jitter(self, x_BlD: Tensor, ctx: Context) -> Tensor | None:
        """Factors in [1 - jitter, 1 + jitter) for the router's copy of the tokens [T, D]; none in evaluation."""
        if not ctx.training or self.config.jitter == 0.0:
            return None
        _, length, width = x_BlD.shape
        features = torch.arange(width, device=x_BlD.device)
        uniform = ctx.uniform(f"{self.name}.jitter", ctx.positions(length, split=True), features)
        return (1.0 + self.config.jitter * (2.0 * uniform.double() - 1.0)).flatten(0, 1)

    def _decide(self, index_Bl: Tensor, routed_Bl: Tensor, ctx: Context) -> _Local:
        """Gather the choices over tp, plan whole groups, and cut out this rank's part."""
        index_Bl = torch.where(routed_Bl, index_Bl, -1)
        index_BL = all_gather(index_Bl, self.topology.tp, 1)
        batch, length = index_BL.shape
        size = self.config.group_size(self.stack)
        size = size if batch % size == 0 else batch
        index_GS = index_BL.reshape(batch // size, size * length)
        plan = make_plan(index_GS, self.config.num_experts, self._capacity(size, ctx))
        kept_Bl = own_part(plan.kept_GS.view(batch, length), self.topology.tp, 1)
        group_B = torch.arange(batch, device=index_BL.device) // size
        group_T = group_B.repeat_interleave(index_Bl.shape[1])
        return _Local(index_Bl, kept_Bl, group_T, plan)

    def _capacity(self, sequences: int, ctx: Context) -> int | None:
        """Slots of an expert for a group, from the nominal length of its sequences."""
        config = self.config
        factor = config.capacity_factor if ctx.training else config.eval_capacity_factor
        length = config.length(self.stack) if ctx.lengths is None else ctx.lengths[self.stack]
        rounding = config.capacity_rounding
        factor = None if ctx.dropless else factor
        return capacity(factor, length * sequences, config.num_experts, config.min_capacity, rounding)

    def _through_experts(self, x_BlD: Tensor, local: _Local, ctx: Context) -> Tensor:
        """[B, l, D]: what the experts make of the kept tokens, before the gate."""
        etp = self.topology.etp
        x_BtD = gather_along(x_BlD, etp, 1)
        index_Bt, kept_Bt = all_gather(local.index_Bl, etp, 1), all_gather(local.kept_Bl, etp, 1)
        route = make_route(index_Bt.flatten(), kept_Bt.flatten(), self.config.num_experts, self.topology.ep)
        noise_M = self._hidden_noise(x_BtD.shape[1], route, ctx)
        y_MD = self.experts(to_experts(x_BtD.flatten(0, 1), route), route.counts, noise_M, ctx)
        y_BtD = from_experts(y_MD, route, kept_Bt.numel()).view_as(x_BtD)
        return scatter_along(y_BtD, etp, 1)

    def _hidden_noise(self, length: int, route: Route, ctx: Context) -> Tensor | None:
        """Random states of the rows that this rank's experts receive: they travel the tokens' way."""
        if not ctx.training or self.experts.rate == 0.0:
            return None
        split = self.topology.etp.size == 1
        rows_T = ctx.rows(f"{self.name}.hidden", ctx.positions(length, split)).flatten()
        rows_M = all_to_all(rows_T[route.kept_N], route.axis, route.send, route.receive)
        return rows_M if route.by_expert_M is None else rows_M[route.by_expert_M]

    def _losses(
        self, y_BlD: Tensor, choice: Choice, local: _Local, real_T: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor]:
        """Attach this rank's shares of the auxiliary losses to the output, and record them."""
        count_GE, groups = local.plan.count_GE, ctx.num_groups[self.stack]
        aux = balance_loss(choice.probs_TE, local.group_T, real_T, count_GE) / groups
        z = router_z_loss(choice.log_z_T, local.group_T, real_T, count_GE) / groups
        if ctx.training:
            y_BlD = attach(y_BlD, aux, self.config.aux_loss_coef)
            if self.config.router_z_loss_coef:
                y_BlD = attach(y_BlD, z, self.config.router_z_loss_coef)
        return y_BlD, self._statistics(aux, z, choice, local, real_T)

    @torch.no_grad()
    def _statistics(self, aux: Tensor, z: Tensor, choice: Choice, local: _Local, real_T: Tensor) -> Tensor:
        """[5 + E] in at least float32; every number is this rank's share of a sum over all ranks."""
        probs = choice.probs_TE
        entropy = -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1)
        routed, kept = real_T.sum(), local.kept_Bl.sum()
        head = torch.stack([aux, z, (routed - kept).to(aux.dtype), routed.to(aux.dtype), (entropy * real_T).sum()])
        lane_T = torch.where(local.index_Bl < 0, self.config.num_experts, local.index_Bl).flatten()
        load = torch.bincount(lane_T, minlength=self.config.num_experts + 1)[: self.config.num_experts]
        return torch.cat([head.detach(), load.to(aux.dtype)])
