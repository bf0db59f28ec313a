"""A run of units as a module: what one pipeline chunk computes.

B sequences, L this rank's part of the tokens, D d_model, N target tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from megaswitch.layers.block import Block, BlockCache
from megaswitch.layers.context import Context, dropout
from megaswitch.layers.embedding import Embedding
from megaswitch.layers.head import Head, HeadLoss
from megaswitch.layers.norm import Norm
from megaswitch.layers.region import region_of
from megaswitch.layers.relative_bias import RelativeBias
from megaswitch.model.config import ModelConfig, Stack
from megaswitch.model.micro_batch import MicroBatch
from megaswitch.model.pieces import STREAMS, Piece, bias_name, pieces_of
from megaswitch.model.record import Record
from megaswitch.model.units import Unit
from megaswitch.ops.bias import Bias
from megaswitch.topology.topology import Topology
from megaswitch.utils.precision import at_least_float32

Carry = dict[str, Tensor]
"""What travels between stages: "x" the encoder's stream, "memory" its result, "y" the decoder's stream; the
last stage gives "loss", this micro-batch's share of the step's loss, or "logits" where there are no targets."""

EOS = 1


def carried_after(unit: Unit | None) -> tuple[str, ...]:
    """Names of what travels after a unit (None: before the first)."""
    if unit is None:
        return ()
    if unit.stack == "encoder":
        return ("memory",) if unit.kind == "norm" else ("x",)
    return ("loss",) if unit.kind == "norm" else ("memory", "y")


@dataclass
class Cache:
    """What the decoder keeps between steps of a generation, of which each adds one token.

    Args:
        by_distance_HT: relative-position biases of the last of T tokens; its last ones are those of any earlier token.
        past: tokens that it has seen.
        blocks: keys and values, by block.
    """

    by_distance_HT: Tensor
    past: int = 0
    blocks: dict[int, BlockCache] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many it was made for."""
        return self.by_distance_HT.shape[1]

    def by_distance(self) -> Tensor:
        """[H, past + 1]: the biases of the token to come."""
        assert self.past < self.tokens, "the cache was made for fewer tokens"
        return self.by_distance_HT[:, self.tokens - self.past - 1 :]

    def select(self, rows_B: Tensor) -> None:
        """Go on with these rows' tokens. Each must stay with the memory that it attends to."""
        for block in self.blocks.values():
            block.attention.select(rows_B)


class Stage(nn.Module):
    """Consecutive units of the model over this rank's shards."""

    def __init__(
        self,
        config: ModelConfig,
        units: Sequence[Unit],
        params: Mapping[str, nn.Parameter],
        topology: Topology,
        first_sentinel: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`first_sentinel` is the lowest sentinel id, from which on targets are not content (0: unknown); `dtype`
        the type of activations (None: the weights')."""
        super().__init__()
        self.config, self.units, self.topology = config, list(units), topology
        self.pieces = pieces_of(config, units)
        self.first_sentinel = first_sentinel or config.vocab_size
        self.dtype = dtype or next(iter(params.values())).dtype
        region = region_of(topology)
        embeds = any(unit.kind == "embed" for unit in units)
        self.embedding = Embedding(config, params, region, self.dtype) if embeds else None
        self.head = Head(config, params, region) if Unit("norm", "decoder") in units else None
        self.loss = HeadLoss(config, self.head) if self.head is not None else None
        self.biases, self.parts = nn.ModuleDict(), nn.ModuleDict()
        for unit in units:
            if unit.kind == "block":
                self.parts[_key(unit)] = Block(config, unit.stack, unit.layer, params, topology)
                name = f"{unit.stack}.relative_bias"
                self.biases[unit.stack] = RelativeBias(name, params, unit.stack == "encoder")
            elif unit.kind == "norm":
                self.parts[_key(unit)] = Norm(f"{unit.stack}.norm", params)

    def start_cache(self, tokens: int) -> Cache:
        """An empty cache for a decoder of up to `tokens` tokens."""
        return Cache(self.biases["decoder"](tokens)[:, :tokens])

    def forward(
        self, carry: Carry, batch: MicroBatch, ctx: Context, record: Record, cache: Cache | None = None
    ) -> Carry:
        """From what the stage before left to what the next one needs; statistics go to `record`.

        With a `cache` the batch holds one decoder token a row, which follows those of earlier calls.
        """
        for piece in self.pieces:
            taken = {name: carry[name] for name in piece.reads}
            carry = {**carry, **self.run(piece, taken, batch, ctx, record, cache)}
        if cache is not None:
            cache.past += 1
        names = ("logits", *carried_after(self.units[-1]))
        return {name: carry[name] for name in names if name in carry}

    def run(
        self,
        piece: Piece,
        carry: Carry,
        batch: MicroBatch,
        ctx: Context,
        record: Record,
        cache: Cache | None = None,
    ) -> Carry:
        """What one piece makes of what it reads."""
        if piece.kind == "embed":
            return {piece.writes: self._embed(piece.stack, batch, ctx)}
        if piece.kind == "bias":
            return {piece.writes: self._by_distance(piece.stack, batch) if cache is None else cache.by_distance()}
        if piece.kind == "block":
            return {piece.writes: self._block(piece.unit, carry, batch, ctx.of(piece.stack), record, cache)}
        return self._finish(piece, carry, batch, ctx, record)

    def _embed(self, stack: Stack, batch: MicroBatch, ctx: Context) -> Tensor:
        assert self.embedding is not None
        ids = batch.encoder_ids_BS if stack == "encoder" else batch.decoder_ids_BT
        return self._dropout(self.embedding(ids, ctx.work), f"{stack}.embed", ctx)

    def _block(
        self, unit: Unit, carry: Carry, batch: MicroBatch, ctx: Context, record: Record, cache: Cache | None
    ) -> Tensor:
        routed = batch.encoder_routed_BS if unit.stack == "encoder" else batch.decoder_routed_BT
        own, cross = self._self_bias(unit.stack, carry[bias_name(unit.stack)], batch), self._cross_bias(batch)
        block, memory = self.parts[_key(unit)], carry.get("memory")
        kept = None if cache is None else cache.blocks.setdefault(unit.layer, BlockCache())
        x_BLD = carry[STREAMS[unit.stack]]
        out: Tensor
        out, statistics = ctx.again("block", block, x_BLD, memory, own, cross, routed, ctx, kept)
        if statistics is not None:
            record.add_layer(unit, statistics)
        return out

    def _by_distance(self, stack: Stack, batch: MicroBatch) -> Tensor:
        ids = batch.encoder_ids_BS if stack == "encoder" else batch.decoder_ids_BT
        out: Tensor = self.biases[stack](ids.shape[1])
        return out

    def _self_bias(self, stack: Stack, by_distance_HR: Tensor, batch: MicroBatch) -> Bias:
        """Relative positions and mask of a stack's self-attention."""
        own = batch.encoder_segments_BS if stack == "encoder" else batch.decoder_segments_BT
        segments = None if own is None else (own, own)
        if stack == "decoder":
            return Bias(by_distance_HR, causal=True, segments=segments)
        real = None if batch.encoder_full or segments is not None else batch.encoder_real_BS
        return Bias(by_distance_HR, real_BM=real, segments=segments)

    def _cross_bias(self, batch: MicroBatch) -> Bias:
        """Which tokens of the memory the decoder sees: real ones, of its own sample."""
        if batch.encoder_segments_BS is not None and batch.decoder_segments_BT is not None:
            return Bias(segments=(batch.decoder_segments_BT, batch.encoder_segments_BS))
        return Bias(real_BM=None if batch.encoder_full else batch.encoder_real_BS)

    def _finish(self, piece: Piece, carry: Carry, batch: MicroBatch, ctx: Context, record: Record) -> Carry:
        normed_BLD = self.parts[_key(piece.unit)](carry[STREAMS[piece.stack]], ctx.ops)
        normed_BLD = self._dropout(normed_BLD, f"{piece.stack}.norm", ctx)
        if piece.stack == "encoder":
            return {piece.writes: normed_BLD}
        if batch.targets_BT is None:
            assert self.head is not None
            return {"logits": self.head(normed_BLD, ctx.work)}
        return {piece.writes: self._loss(normed_BLD, batch.targets_BT, ctx, record)}

    def _loss(self, normed_BLD: Tensor, targets_BT: Tensor, ctx: Context, record: Record) -> Tensor:
        """Sum of token losses over the step's number of targets; statistics are counted by one tp rank."""
        assert self.loss is not None
        target_N = targets_BT.flatten()
        real_N = (target_N != 0).to(at_least_float32(normed_BLD.dtype))
        losses = self.loss(normed_BLD, target_N, real_N / ctx.num_targets, ctx.work, ctx.ops)
        if self.topology.tp.first:
            content_N = real_N * (target_N != EOS) * (target_N < self.first_sentinel)
            nll_N, z_N = losses.nll_N, losses.z_N
            sums = [nll_N * real_N, z_N * real_N, real_N, nll_N * content_N, content_N]
            record.add_tokens(torch.stack([s.sum() for s in sums]))
        objective: Tensor = losses.objective
        return objective

    def _dropout(self, x_BLD: Tensor, site: str, ctx: Context) -> Tensor:
        return dropout(x_BLD, self.config.dropout, site, ctx, split=self.topology.sequence_parallel)


def _key(unit: Unit) -> str:
    return f"{unit.stack}_{unit.kind}_{unit.layer}"
