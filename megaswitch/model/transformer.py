"""The whole model in one process: for inspection, scoring and generation.

B sequences, S encoder tokens, T decoder tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from megaswitch.layers.context import Context
from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.model.decoding import Decoding
from megaswitch.model.generate import START, Search, generate, refuse_unusable
from megaswitch.model.micro_batch import MicroBatch
from megaswitch.model.record import Record
from megaswitch.model.stage import Carry, Stage
from megaswitch.model.units import stack_units
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid
from megaswitch.topology.topology import Topology, make_topology


@dataclass(frozen=True)
class Output:
    """`logits_BTV` in at least float32; `aux_losses`: load-balancing loss of each Switch layer, by name."""

    logits_BTV: Tensor
    aux_losses: dict[str, float]

    @property
    def logits(self) -> Tensor:
        """The logits [B, T, V]."""
        return self.logits_BTV


def alone(device: torch.device) -> Topology:
    """The topology of a single process."""
    return make_topology(make_grid(LayoutConfig(), 1), 0, device)


class SwitchTransformer(nn.Module):
    """Encoder and decoder over whole tensors; evaluation capacity unless in training mode."""

    def __init__(self, config: ModelConfig, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.config = config
        self.params = dict(params)
        """The parameters by their global names, those of checkpoints; modules hold the same objects."""
        self.topology = alone(next(iter(params.values())).device)
        self.encoder, self.decoder = (
            Stage(config, stack_units(config, stack), params, self.topology) for stack in STACKS
        )

    def forward(self, encoder_ids_BS: Tensor, decoder_ids_BT: Tensor, encoder_mask_BS: Tensor | None = None) -> Output:
        """Logits of the next token at every decoder position. The mask (default: ids that are not 0) says which
        encoder tokens are real. A routing group is `group_sequences` sequences of the lengths given here."""
        batch = self._batch(encoder_ids_BS, decoder_ids_BT, encoder_mask_BS)
        record = Record(self.config, batch.samples_B.device)
        ctx = self._context(batch, dropless=False)
        logits_BTV = self._decode(self._encode(batch, ctx, record), batch, ctx, record)
        names = record.names
        return Output(logits_BTV, dict(zip(names, record.layer_values("aux"), strict=True)))

    @torch.no_grad()
    def generate(
        self,
        encoder_ids_BS: Tensor,
        max_tokens: int,
        encoder_mask_BS: Tensor | None = None,
        *,
        num_beams: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        length_penalty: float = 1.0,
        use_cache: bool = True,
    ) -> Tensor:
        """Continuations [B, up to max_tokens] (int64), EOS included, 0 after it: greedy unless `num_beams` or
        `temperature` say otherwise (see `generate.Search`). Nothing is dropped, and there is no noise.

        Without the cache each step passes through all tokens again; the result is the same. Raises UserError for
        options that do not go together.
        """
        search = Search(num_beams, temperature, top_k, top_p, seed, length_penalty)
        refuse_unusable(search, max_tokens)
        start_B1 = encoder_ids_BS.new_full((encoder_ids_BS.shape[0], 1), START)
        batch = self._batch(encoder_ids_BS, start_B1, encoder_mask_BS)
        record = Record(self.config, batch.samples_B.device)
        ctx = replace(self._context(batch, dropless=True), training=False)
        memory = self._encode(batch, ctx, record)
        decoding = Decoding(self.decoder, memory, batch, ctx, record, max_tokens if use_cache else 0)
        return generate(decoding, max_tokens, search)

    def _encode(self, batch: MicroBatch, ctx: Context, record: Record) -> Carry:
        carry: Carry = self.encoder({}, batch, ctx, record)
        return carry

    def _decode(self, carry: Carry, batch: MicroBatch, ctx: Context, record: Record) -> Tensor:
        logits: Tensor = self.decoder(carry, batch, ctx, record)["logits"]
        return logits

    def _batch(self, encoder_ids_BS: Tensor, decoder_ids_BT: Tensor, mask_BS: Tensor | None) -> MicroBatch:
        real_BS = encoder_ids_BS != 0 if mask_BS is None else mask_BS.bool()
        every_BT = torch.ones_like(decoder_ids_BT, dtype=torch.bool)
        return MicroBatch(
            encoder_ids_BS=encoder_ids_BS,
            decoder_ids_BT=decoder_ids_BT,
            targets_BT=None,
            samples_B=torch.arange(encoder_ids_BS.shape[0], device=encoder_ids_BS.device),
            encoder_real_BS=real_BS,
            decoder_real_BT=every_BT,
            encoder_routed_BS=torch.ones_like(real_BS) if self.config.route_padding else real_BS,
            decoder_routed_BT=every_BT,
            encoder_full=bool(real_BS.all()),
        )

    def _context(self, batch: MicroBatch, *, dropless: bool) -> Context:
        sequences = batch.samples_B.shape[0]
        groups = {stack: max(1.0, sequences / self.config.group_size(stack)) for stack in STACKS}
        return Context(
            topology=self.topology,
            training=self.training,
            seed=0,
            step=0,
            samples_B=batch.samples_B,
            num_targets=1.0,
            num_groups=groups,
            dropless=dropless,
            lengths={"encoder": batch.encoder_ids_BS.shape[1], "decoder": batch.decoder_ids_BT.shape[1]},
        )
