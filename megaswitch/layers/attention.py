"""Multi-head attention, heads split over tp: self-attention and cross-attention are the same layer.

B sequences, L queries, M keys, D d_model, H this rank's heads, K d_kv.

Communication: one region entered with L tokens and left; cross-attention enters the memory's M tokens as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.context import Context
from megaswitch.layers.linear import Linear, linear_spec
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.config import ModelConfig
from megaswitch.ops.bias import Bias, Drop
from megaswitch.params.spec import ParamSpec


def attention_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """q, k, v and o; q's initialisation holds the factor d_kv^-0.5 that the logits lack."""
    wide, narrow = (config.d_model, config.inner_dim), (config.inner_dim, config.d_model)
    specs = [linear_spec(f"{name}.{w}", wide, initial.projection(config, w), "attn", "column") for w in "qkv"]
    return [*specs, linear_spec(f"{name}.o", narrow, initial.projection(config, "o"), "attn", "row")]


@dataclass
class Kept:
    """Keys and values [B, M, H, K] of one attention that stay from step to step of a generation; empty at first."""

    k_BMHK: Tensor | None = None
    v_BMHK: Tensor | None = None

    def extend(self, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        """Append those of new tokens; returns all."""
        k = k_BLHK if self.k_BMHK is None else torch.cat([self.k_BMHK, k_BLHK], 1)
        v = v_BLHK if self.v_BMHK is None else torch.cat([self.v_BMHK, v_BLHK], 1)
        self.k_BMHK, self.v_BMHK = k, v
        return k, v

    def select(self, rows_B: Tensor) -> None:
        """Keep the rows `rows_B` (a row may be named several times), in that order."""
        if self.k_BMHK is not None and self.v_BMHK is not None:
            self.k_BMHK, self.v_BMHK = self.k_BMHK[rows_B], self.v_BMHK[rows_B]


class AttentionCore:
    """Softmax attention of this rank's heads, with dropout on the weights."""

    def __init__(self, name: str, config: ModelConfig, region: Region) -> None:
        self.name, self.rate, self.axis = name, config.dropout, region.axis

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, ctx: Context) -> Tensor:
        """[B, L, H, K] from queries [B, L, H, K], keys and values [B, M, H, K]; computed again in the backward where
        that frees the weights of all pairs, which kernels do not keep."""
        if not ctx.ops.keeps_attention_weights:
            return self._attend(q, k, v, bias, ctx)
        out: Tensor = ctx.again("core", self._attend, q, k, v, bias, ctx)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, ctx: Context) -> Tensor:
        return ctx.ops.attention(q, k, v, bias, self._dropped(q, ctx))

    def _dropped(self, q_BLHK: Tensor, ctx: Context) -> Drop | None:
        """Which weights are dropped: by (sample, head of all, query, key)."""
        if not ctx.training or self.rate == 0.0:
            return None
        _, queries, heads, _ = q_BLHK.shape
        first = self.axis.rank * heads
        head = torch.arange(first, first + heads, device=q_BLHK.device)
        return Drop(self.rate, ctx.rows(f"{self.name}.weights", head, ctx.positions(queries, False)))


class Attention(nn.Module):
    """Attention from `x` to itself, or to a memory."""

    def __init__(self, name: str, config: ModelConfig, params: Mapping[str, nn.Parameter], region: Region) -> None:
        super().__init__()
        self.region, self.d_kv = region, config.d_kv
        self.core = AttentionCore(name, config, region)
        self.q, self.k, self.v, self.o = (Linear(f"{name}.{w}", params) for w in "qkvo")

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor | None,
        bias: Bias,
        ctx: Context,
        kept: Kept | None = None,
    ) -> Tensor:
        """[B, L, D] to the same. `bias` holds relative positions and masks.

        With `kept`, self-attention sees the tokens of earlier calls too, and the memory's keys and values are
        computed by the first call alone.
        """
        inside_BLD = self.region.enter(x_BLD, ctx.work)
        q = self._heads(self.q(inside_BLD, ctx.work))
        k, v = self._keys_values(inside_BLD, memory_BMD, kept, ctx.work)
        return self.region.leave(self.o(self.core(q, k, v, bias, ctx).flatten(2), ctx.work))

    def _keys_values(
        self, inside_BLD: Tensor, memory_BMD: Tensor | None, kept: Kept | None, work: WeightWork
    ) -> tuple[Tensor, Tensor]:
        if memory_BMD is not None and kept is not None and kept.k_BMHK is not None and kept.v_BMHK is not None:
            return kept.k_BMHK, kept.v_BMHK
        source_BMD = inside_BLD if memory_BMD is None else self.region.enter(memory_BMD, work)
        k, v = self._heads(self.k(source_BMD, work)), self._heads(self.v(source_BMD, work))
        return (k, v) if kept is None else kept.extend(k, v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.d_kv)
