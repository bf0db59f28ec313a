"""The next token's logits, step after step, with or without a cache: what every search is made of.

B sequences, S encoder tokens, T decoder tokens, D d_model, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor

from megaswitch.layers.context import Context
from megaswitch.model.micro_batch import MicroBatch
from megaswitch.model.record import Record
from megaswitch.model.stage import Carry, Stage


class Decoding:
    """Continuations of sequences that have been encoded; each call of `next_logits` sees one token more."""

    def __init__(
        self, decoder: Stage, memory: Carry, batch: MicroBatch, ctx: Context, record: Record, max_tokens: int
    ) -> None:
        """`memory` is the encoder's result for `batch`. A cache is kept for `max_tokens` tokens, none if that is 0."""
        self.decoder, self.memory, self.batch, self.ctx, self.record = decoder, memory, batch, ctx, record
        self.cache = decoder.start_cache(max_tokens) if max_tokens else None

    @property
    def rows(self) -> int:
        """Sequences."""
        return self.batch.encoder_ids_BS.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the ids are."""
        return self.batch.encoder_ids_BS.device

    def next_logits(self, ids_BT: Tensor) -> Tensor:
        """[B, V]: logits of the token after `ids_BT` (int64, from the start token on), which are the ids of the call
        before, one more each, in the rows that `select` has put there."""
        if self.cache is not None:
            assert ids_BT.shape[1] == self.cache.past + 1
            ids_BT = ids_BT[:, -1:]
        every_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        batch = replace(self.batch, decoder_ids_BT=ids_BT, decoder_real_BT=every_BT, decoder_routed_BT=every_BT)
        logits_BTV: Tensor = self.decoder(self.memory, batch, self.ctx, self.record, self.cache)["logits"]
        return logits_BTV[:, -1]

    def repeated(self, times: int) -> "Decoding":
        """The same before its first step, each sequence `times` in a row."""
        assert self.cache is None or self.cache.past == 0

        def again(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, 0)

        batch = replace(
            self.batch,
            encoder_ids_BS=again(self.batch.encoder_ids_BS),
            encoder_real_BS=again(self.batch.encoder_real_BS),
            encoder_routed_BS=again(self.batch.encoder_routed_BS),
            samples_B=again(self.batch.samples_B),
        )
        memory = {name: again(x) for name, x in self.memory.items()}
        max_tokens = 0 if self.cache is None else self.cache.tokens
        ctx = replace(self.ctx, samples_B=batch.samples_B)
        return Decoding(self.decoder, memory, batch, ctx, self.record, max_tokens)

    def select(self, rows_B: Tensor) -> None:
        """Row i goes on with what row `rows_B[i]` has seen; both must be copies of one sequence."""
        if self.cache is not None:
            self.cache.select(rows_B)
