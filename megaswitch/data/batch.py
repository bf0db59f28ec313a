"""What training receives: one batch of samples. Shape suffixes: B rows, S encoder positions, T decoder positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Empty = Callable[[tuple[int, int]], Int64s]
"""Makes an int64 array of a shape, its content open: `empty`, or what a GPU can read from."""


def empty(shape: tuple[int, int]) -> Int64s:
    """Plain memory."""
    return np.empty(shape, np.int64)


class Batch(NamedTuple):
    """Rows of one step or micro-batch, all int64; 0 is padding. A row of zeros is masked: it keeps the shape."""

    encoder_ids_BS: Int64s
    """Text with sentinels, EOS last."""

    decoder_ids_BT: Int64s
    """Targets shifted right, 0 in front."""

    targets_BT: Int64s
    """What the decoder learns, EOS last; the loss counts targets other than 0."""

    samples_B: Int64s
    """Global sample indices."""

    encoder_segments_BS: Int64s | None = None
    """Where rows hold several samples: the number of each position's sample in its row, from 1, 0 on padding."""

    decoder_segments_BT: Int64s | None = None
    """The same of targets and decoder ids; both are there or neither."""

    def rows(self, first: int, last: int) -> Batch:
        """Rows first .. last - 1, as views."""
        return Batch(*(None if array is None else array[first:last] for array in self))  # type: ignore[arg-type]


def empty_batch(first: int, count: int, lengths: tuple[int, int], *, packed: bool, make: Empty = empty) -> Batch:
    """A batch of samples first .. first + count - 1 whose rows are still to be filled; `lengths` are S and T."""
    s, t = ((count, length) for length in lengths)
    segments = (make(s), make(t)) if packed else (None, None)
    samples_B = np.arange(first, first + count, dtype=np.int64)
    return Batch(make(s), make(t), make(t), samples_B, *segments)


def write_row(batch: Batch, row: int, samples: list[tuple[Int64s, Int64s]]) -> None:
    """Fills one row with samples (inputs and targets with their EOS), one behind the other, each shifted by itself."""
    for array in batch:
        if array is not None and array.ndim == 2:
            array[row] = 0
    at_s = at_t = 0
    for number, (inputs, targets) in enumerate(samples, 1):
        end_s, end_t = at_s + inputs.size, at_t + targets.size
        batch.encoder_ids_BS[row, at_s:end_s] = inputs
        batch.targets_BT[row, at_t:end_t] = targets
        room = batch.decoder_ids_BT.shape[1]
        batch.decoder_ids_BT[row, at_t + 1 : end_t + 1] = targets[: room - at_t - 1]
        batch.decoder_ids_BT[row, at_t] = 0
        if batch.encoder_segments_BS is not None and batch.decoder_segments_BT is not None:
            batch.encoder_segments_BS[row, at_s:end_s] = number
            batch.decoder_segments_BT[row, at_t:end_t] = number
        at_s, at_t = end_s, end_t
