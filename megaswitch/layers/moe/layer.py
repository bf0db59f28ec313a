"""The Switch layer: router, plan, dispatch, experts, and the way back (paper section 2).

Each tp rank routes its own part of every sequence, learns the choices of the others (one number a choice) and
computes the group's plan redundantly. With etp = 1 it dispatches its own tokens; with etp = tp it first
gathers all tokens of its tp group, whose ranks each hold a part of every expert.

B sequences, L tokens of a sequence (all of them), l this tp rank's part, t those that this rank dispatches (l or L),
K choices a token, D d_model, E experts, T = B x l tokens.

On tp: an all-gather of the choices, 8 B L K bytes (as many again without K for priorities; an all-reduce of G E w for
each loss that counts whole groups' probabilities). Without sequence parallelism the input's gradient and the output
are gathered, B L D s each. On etp: tokens are gathered (B L D s; 9 B L K more for what they chose) and results
reduce-scattered (B L K D s), the other way round backward. On ep see `dispatch.py`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megaswitch.comm.collectives import all_gather, own_part
from megaswitch.comm.functions import Arriving, concat_along, gather_along, scatter_along, split_along
from megaswitch.layers.context import Context
from megaswitch.layers.moe.choice import Choice, Places, encode, named_index, wanted_index
from megaswitch.layers.moe.dispatch import Route, make_route
from megaswitch.layers.moe.experts import FEED_FORWARD, Experts, expert_specs
from megaswitch.layers.moe.losses import attach
from megaswitch.layers.moe.noise import Noise
from megaswitch.layers.moe.padded import make_padded_route
from megaswitch.layers.moe.plan import make_plan
from megaswitch.layers.moe.router import Router, router_specs
from megaswitch.layers.moe.statistics import Tokens, aux_loss, statistics, z_loss
from megaswitch.model.config import ModelConfig, Stack
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.permute import weigh
from megaswitch.ops.reference.random import fold
from megaswitch.ops.reference.router import Queued
from megaswitch.ops.reference.routing import Queues
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Topology


def switch_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """The router and the experts."""
    return [*router_specs(f"{name}.router", config), *expert_specs(f"{name}.experts", config)]


class _Decided(NamedTuple):
    """What was decided about this tp rank's tokens: the experts they want and those that serve them, [B, l, K]."""

    index_BlK: Tensor
    kept_BlK: Tensor
    tokens: Tokens
    slots: int | None
    """Most assignments of a rank to one expert; None where nothing is dropped."""


class _Travelling(NamedTuple):
    """Tokens on their way to the experts, with the random states of their hidden units where those are dropped out."""

    route: Route
    rows: Arriving
    states: Arriving | None
    shape: torch.Size
    """[B, t, K]: the assignments that they come back to."""


class _Losses(NamedTuple):
    """Auxiliary losses with their weights, and what the layer reports."""

    attached: list[tuple[Tensor, float]]
    numbers: Tensor


def queues(queued: Queued | None, code_GSK: Tensor, experts: int, ops: Ops) -> tuple[Queues | None, Tensor]:
    """First choices' queues, where the router's pass gave them, and how many tokens name each expert [G, K, E]."""
    if queued is None:
        return None, ops.count_choices(named_index(code_GSK), experts)
    return Queues(queued.place_T.view(code_GSK.shape[:2]), queued.count_GKE[:, 0]), queued.count_GKE


class SwitchLayer(nn.Module):
    """A layer of which each token passes through one expert (or, with other routers, a few)."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        stack: Stack,
        params: Mapping[str, nn.Parameter],
        topology: Topology,
        outputs: Sequence[str] = FEED_FORWARD,
    ) -> None:
        super().__init__()
        self.name, self.config, self.stack, self.topology = name, config, stack, topology
        self.router = Router(f"{name}.router", config, params)
        self.experts = Experts(f"{name}.experts", config, params, topology.etp, outputs)

    def forward(self, x_BLD: Tensor, routed_BL: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """The layer's output, split as `x_BLD`, zero at dropped tokens, and its statistics.

        `routed_BL` says of all positions, also of other tp ranks', which tokens are routed.
        """
        tp, split = self.topology.tp, self.topology.sequence_parallel
        x_BlD = x_BLD if split else split_along(x_BLD, tp, 1)
        routed_Bl = own_part(routed_BL, tp, 1)
        places = self._places(routed_Bl)
        noise = Noise(ctx, self.name, x_BlD.shape[1])
        choice = self.router(x_BlD.flatten(0, 1), noise, places, ctx.work, ctx.ops)
        decided = self._decide(choice, routed_Bl, places, ctx)
        travelling = self._send(x_BlD, decided, ctx)
        losses = self._losses(choice, decided, ctx)  # while the tokens travel
        y_BlD = self._through_experts(travelling, choice.gate_TK, ctx)
        for loss, weight in losses.attached:
            y_BlD = attach(y_BlD, loss, weight)
        return (y_BlD if split else concat_along(y_BlD, tp, 1)), losses.numbers

    def _places(self, routed_Bl: Tensor) -> Places:
        """The groups of this rank's tokens."""
        batch, length = routed_Bl.shape
        size = self._group_size(batch)
        group_B = torch.arange(batch, device=routed_Bl.device) // size
        whole = self.topology.tp.size == 1
        return Places(group_B.repeat_interleave(length), routed_Bl.flatten(), batch // size, whole)

    def _decide(self, choice: Choice, routed_Bl: Tensor, places: Places, ctx: Context) -> _Decided:
        """Gather the choices over tp, plan whole groups, and cut out this rank's part."""
        tp, experts = self.topology.tp, self.config.num_experts
        shape = (*routed_Bl.shape, -1)
        code_BlK = encode(choice.index_TK.view(shape), choice.wanted_TK.view(shape), routed_Bl)
        code_BLK = all_gather(code_BlK, tp, 1)
        batch, length, choices = code_BLK.shape
        size = self._group_size(batch)
        code_GSK = code_BLK.reshape(batch // size, size * length, choices)
        capacity = self._capacity(size, ctx)
        first, count_GKE = queues(choice.routed.queued, code_GSK, experts, ctx.ops)
        plan = make_plan(
            wanted_index(code_GSK),
            experts,
            capacity,
            priority_GS=self._priorities(choice, routed_Bl, code_GSK.shape[:2]),
            exclusive=choice.exclusive,
            first=first,
            ops=ctx.ops,
        )
        tokens = Tokens(places.group_T, places.real_T, count_GKE)
        kept_BlK = own_part(plan.kept_GSK.view(batch, length, choices), tp, 1)
        slots = None if capacity is None else capacity * (batch // size)
        return _Decided(wanted_index(code_BlK), kept_BlK, tokens, slots)

    def _group_size(self, batch: int) -> int:
        """Sequences of a routing group; a batch of no whole groups (outside training) is one group."""
        size = self.config.group_size(self.stack)
        return size if batch % size == 0 else batch

    def _priorities(self, choice: Choice, routed_Bl: Tensor, shape: torch.Size) -> Tensor | None:
        """Every token's priority [G, S], for batch-prioritised routing."""
        if choice.priority_T is None:
            return None
        return all_gather(choice.priority_T.view_as(routed_Bl), self.topology.tp, 1).reshape(shape)

    def _capacity(self, sequences: int, ctx: Context) -> int | None:
        """Slots of an expert for a group, from the nominal length of its sequences; None drops nothing."""
        length = self.config.length(self.stack) if ctx.lengths is None else ctx.lengths[self.stack]
        return None if ctx.dropless else self.config.slots(length * sequences, training=ctx.training)

    def _send(self, x_BlD: Tensor, decided: _Decided, ctx: Context) -> _Travelling:
        """Start the tokens that experts serve on their way."""
        etp, ep, experts = self.topology.etp, self.topology.ep, self.config.num_experts
        x_BtD = gather_along(x_BlD, etp, 1, ctx.work.meanwhile)
        index_BtK, kept_BtK = (all_gather(part, etp, 1) for part in (decided.index_BlK, decided.kept_BlK))
        if ctx.padded and decided.slots is not None:
            slots = min(decided.slots, kept_BtK[..., 0].numel())
            route: Route = make_padded_route(index_BtK.flatten(), kept_BtK.flatten(), experts, slots, ep)
        else:
            route = make_route(index_BtK.flatten(), kept_BtK.flatten(), experts, ep, ctx.ops)
        rows = route.send(x_BtD.flatten(0, 1), ctx.work)
        states = self._hidden_noise(x_BtD.shape[1], kept_BtK.shape[2], route, ctx)
        return _Travelling(route, rows, states, kept_BtK.shape)

    def _through_experts(self, travelling: _Travelling, gate_TK: Tensor, ctx: Context) -> Tensor:
        """[B, l, D]: what the experts make of the tokens they serve, times the gate; zero elsewhere."""
        route, states, shape = travelling.route, travelling.states, travelling.shape
        rows_MD = route.by_expert(travelling.rows.wait())
        noise_M = None if states is None else route.by_expert(states.wait())
        y_MD = self.experts(rows_MD, route.counts, noise_M, ctx)
        if self.topology.etp.size == 1:
            return route.home(y_MD, gate_TK, ctx.work).view(*shape[:2], -1)
        y_BtKD = route.home(y_MD, None, ctx.work).view(*shape, -1)  # parts of sums, of other ranks' tokens too
        y_BlKD = scatter_along(y_BtKD, self.topology.etp, 1)
        return weigh(y_BlKD.flatten(0, 2), gate_TK).view(shape[0], y_BlKD.shape[1], -1)

    def _hidden_noise(self, length: int, choices: int, route: Route, ctx: Context) -> Arriving | None:
        """Random states of the rows that this rank's experts receive: they travel the tokens' way."""
        if not ctx.training or self.experts.rate == 0.0:
            return None
        split = self.topology.etp.size == 1
        states_BtK = ctx.rows(f"{self.name}.hidden", ctx.positions(length, split))
        states_BtK = fold(states_BtK, torch.arange(choices, device=states_BtK.device))
        return route.send_numbers(states_BtK.flatten())

    def _losses(self, choice: Choice, decided: _Decided, ctx: Context) -> _Losses:
        """This rank's shares of the auxiliary losses, and the record."""
        config, groups = self.config, ctx.num_groups[self.stack]
        aux = aux_loss(choice, decided.tokens, self.topology.tp)
        z = z_loss(choice, decided.tokens)
        attached = [(aux.own / groups, config.aux_loss_weight), (z / groups, config.router_z_loss_coef)]
        decisions = (decided.index_BlK, decided.kept_BlK, decided.tokens)
        numbers = statistics(aux.share / groups, z / groups, choice, *decisions, ctx.ops)
        return _Losses([pair for pair in attached if pair[1]] if ctx.training else [], numbers)
