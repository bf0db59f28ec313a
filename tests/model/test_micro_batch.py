"""Micro-batches: padding to what tp splits, and which tokens are real and routed."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.model.micro_batch import make_micro_batch, padded_length

CPU = torch.device("cpu")


class Sample(NamedTuple):
    encoder_ids_BS: np.ndarray
    decoder_ids_BT: np.ndarray
    targets_BT: np.ndarray
    samples_B: np.ndarray
    encoder_segments_BS: np.ndarray | None = None
    decoder_segments_BT: np.ndarray | None = None


BATCH = Sample(
    np.array([[5, 6, 7, 1, 0], [5, 6, 7, 8, 1]]),
    np.array([[0, 9, 8], [0, 7, 1]]),
    np.array([[9, 8, 1], [7, 1, 0]]),
    np.array([10, 11]),
)


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_padded_length_is_the_least_multiple(length, tp):
    padded = padded_length(length, tp)
    assert padded % tp == 0 and 0 <= padded - length < tp


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("route_padding", [True, False])
def test_tensors(tp, route_padding):
    batch = make_micro_batch(BATCH, tp, CPU, route_padding=route_padding)
    lengths = {1: (5, 3), 2: (6, 4), 4: (8, 4)}[tp]
    assert batch.encoder_ids_BS.shape == (2, lengths[0])
    assert batch.decoder_ids_BT.shape == batch.targets_BT.shape == (2, lengths[1])
    assert torch.equal(batch.encoder_ids_BS[:, :5], torch.from_numpy(BATCH.encoder_ids_BS))
    assert not batch.encoder_ids_BS[:, 5:].any() and not batch.targets_BT[:, 3:].any()
    assert torch.equal(batch.encoder_real_BS, batch.encoder_ids_BS != 0)
    assert torch.equal(batch.decoder_real_BT, batch.targets_BT != 0), "by targets: the first decoder id is 0"
    real, routed = (batch.encoder_real_BS, batch.decoder_real_BT), (batch.encoder_routed_BS, batch.decoder_routed_BT)
    for mask, chosen, own in zip(real, routed, (5, 3), strict=True):
        assert chosen[:, :own].all() if route_padding else torch.equal(chosen, mask)
        assert not chosen[:, own:].any(), "what tp adds is never routed"
    assert batch.samples_B.tolist() == [10, 11]
    assert not batch.encoder_full


def test_padding_of_one_row_is_routed_without_a_warning():
    one = BATCH._replace(**{name: array[:1] for name, array in BATCH._asdict().items() if array is not None})
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            batch = make_micro_batch(one, 2, CPU, route_padding=True)
    finally:
        torch.set_warn_always(False)
    assert batch.encoder_routed_BS.tolist() == [[True] * 5 + [False]]


def test_full_only_where_nothing_is_padding():
    full = BATCH._replace(encoder_ids_BS=np.ones((2, 4), np.int64))
    assert make_micro_batch(full, 2, CPU).encoder_full
    assert not make_micro_batch(full, 3, CPU).encoder_full


def test_segments_are_padded_with_none():
    segments = (np.array([[1, 1, 2, 2, 0]] * 2), np.array([[1, 2, 2]] * 2))
    batch = make_micro_batch(BATCH._replace(encoder_segments_BS=segments[0], decoder_segments_BT=segments[1]), 4, CPU)
    assert batch.encoder_segments_BS.tolist() == [[1, 1, 2, 2, 0, 0, 0, 0]] * 2
    assert batch.decoder_segments_BT.tolist() == [[1, 2, 2, 0]] * 2
    assert make_micro_batch(BATCH, 4, CPU).encoder_segments_BS is None
