"""Corruption of given pieces by the compiled reader and by its numpy twin, for tests that look at nothing else."""

import numpy as np

from megaswitch.data import _native
from megaswitch.data.batch import empty_batch
from megaswitch.data.denoise import Rule, cut, denoise_numpy, table
from megaswitch.data.rng import derive_each
from megaswitch.data.spans import EOS


def keys(count, seed=0):
    """One key a sample."""
    return derive_each(seed, np.arange(count, dtype=np.uint64))


def corrupt(raw_BL, keys_B, rule: Rule, lengths: tuple[int, int], first_sentinel=999, threads=2):
    """Inputs (B, S) and targets (B, T) by the compiled reader: each piece is a document, in order."""
    count, length = raw_BL.shape
    batch = empty_batch(0, count, lengths, packed=False)
    rows = _native.Rows(batch.encoder_ids_BS, batch.targets_BT, batch.decoder_ids_BT, None, None)
    starts = np.arange(count) * length
    epoch = (np.arange(count), starts + length)
    zeros = np.zeros(count, np.int64)
    tokens = np.ascontiguousarray(raw_BL, np.int64).reshape(-1)
    rows.add_stream(
        *(np.arange(count), tokens, starts, 1 << 40, [epoch], zeros, starts, keys_B, table([rule]), zeros),
        *(first_sentinel, EOS),
    )
    assert rows.make(threads) is None
    return batch.encoder_ids_BS, batch.targets_BT


def corrupt_numpy(raw_BL, keys_B, rule, lengths, first_sentinel=999):
    """The same by the numpy twin."""
    both = [np.zeros((len(raw_BL), length), np.int64) for length in lengths]
    for b, key in enumerate(keys_B.tolist()):
        for array, ids, room in zip(both, denoise_numpy(rule, raw_BL[b], key, first_sentinel), lengths, strict=True):
            kept = cut(ids, room)
            array[b, : kept.size] = kept
    return both
