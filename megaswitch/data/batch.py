"""What training receives: one batch of corrupted samples. Shape suffixes: B samples, S encoder positions, T decoder
positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


class Batch(NamedTuple):
    """Samples of one step or micro-batch, all int64; 0 is padding. A row of zeros is masked: it is there to keep
    shapes."""

    encoder_ids_BS: Int64s
    """Corrupted text with sentinels, EOS last."""

    decoder_ids_BT: Int64s
    """Targets shifted right, 0 in front."""

    targets_BT: Int64s
    """Sentinels and the text they stand for, EOS last; the loss counts targets other than 0."""

    samples_B: Int64s
    """Global sample indices."""


def shift_right(targets_BT: Int64s) -> Int64s:
    """The decoder's input for targets: a 0 in front, the last position dropped."""
    decoder_ids_BT = np.zeros_like(targets_BT)
    decoder_ids_BT[:, 1:] = targets_BT[:, :-1]
    return decoder_ids_BT
