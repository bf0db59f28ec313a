"""One micro-batch as tensors, with lengths padded to what tensor parallelism can split.

B sequences, S encoder tokens, T decoder tokens, both padded to a multiple of tp.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


class Sequences(Protocol):
    """What the data tower's batches offer: int64 arrays, 0 for padding; segments where rows hold several samples."""

    @property
    def encoder_ids_BS(self) -> Ids: ...
    @property
    def decoder_ids_BT(self) -> Ids: ...
    @property
    def targets_BT(self) -> Ids: ...
    @property
    def samples_B(self) -> Ids: ...
    @property
    def encoder_segments_BS(self) -> Ids | None: ...
    @property
    def decoder_segments_BT(self) -> Ids | None: ...


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of a micro-batch: ids int64, masks bool.

    Without targets a pass gives logits.
    `*_real` are the tokens that count (encoder ids, and decoder positions with a target, that are not 0);
    `*_routed` those that are routed; `*_full` says, known on the host, that all tokens of the stack are real.
    `*_segments`, of packed rows alone, number the samples of a row from 1; a token sees those of its own number.
    """

    encoder_ids_BS: Tensor
    decoder_ids_BT: Tensor
    targets_BT: Tensor | None
    samples_B: Tensor
    encoder_real_BS: Tensor
    decoder_real_BT: Tensor
    encoder_routed_BS: Tensor
    decoder_routed_BT: Tensor
    encoder_full: bool
    encoder_segments_BS: Tensor | None = None
    decoder_segments_BT: Tensor | None = None


def padded_length(length: int, tp: int) -> int:
    """The least multiple of tp that is not below `length`."""
    return -(-length // tp) * tp


def _pad(array: NDArray[Any], tp: int) -> NDArray[Any]:
    more = padded_length(array.shape[1], tp) - array.shape[1]
    return np.pad(array, ((0, 0), (0, more))) if more else array


def make_micro_batch(batch: Sequences, tp: int, device: torch.device, *, route_padding: bool = False) -> MicroBatch:
    """Tensors on `device`. With `route_padding` padding tokens are routed too, but never what tp adds."""
    encoder, targets = _pad(batch.encoder_ids_BS, tp), _pad(batch.targets_BT, tp)
    segments_S, segments_T = batch.encoder_segments_BS, batch.decoder_segments_BT
    encoder_real, decoder_real = encoder != 0, targets != 0
    encoder_routed, decoder_routed = encoder_real, decoder_real
    if route_padding:
        given = batch.encoder_ids_BS, batch.targets_BT
        encoder_routed, decoder_routed = (_pad(np.ones(ids.shape, np.bool_), tp) for ids in given)

    def tensor(array: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return MicroBatch(
        encoder_ids_BS=tensor(encoder),
        decoder_ids_BT=tensor(_pad(batch.decoder_ids_BT, tp)),
        targets_BT=tensor(targets),
        samples_B=tensor(batch.samples_B),
        encoder_real_BS=tensor(encoder_real),
        decoder_real_BT=tensor(decoder_real),
        encoder_routed_BS=tensor(encoder_routed),
        decoder_routed_BT=tensor(decoder_routed),
        encoder_full=bool(encoder_real.all()),
        encoder_segments_BS=None if segments_S is None else tensor(_pad(segments_S, tp)),
        decoder_segments_BT=None if segments_T is None else tensor(_pad(segments_T, tp)),
    )
