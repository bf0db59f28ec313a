"""Packed rows: every document once an epoch, each by itself, both readers alike."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import _native
from megaswitch.data.config import DataConfig
from megaswitch.data.index import pack_numpy
from megaswitch.data.opening import open_split
from megaswitch.data.packing import cut_documents, packed_rules, sizes
from megaswitch.data.rng import permutation
from megaswitch.utils.errors import UserError

LENGTHS = {"encoder_length": 64, "decoder_length": 20}


def opened(prefix, *, seed=0, repeat=True, **config):
    data = DataConfig(train=prefix, split="1,0,0", packing=True, **config)
    return open_split(data, "train", vocab_size=1000, seed=seed, repeat=repeat, **LENGTHS)


def samples_of(batch, row):
    """The samples of a row: ids of both sides by their segment's number."""
    found = []
    for number in range(1, int(batch.encoder_segments_BS[row].max()) + 1):
        mine_S, mine_T = batch.encoder_segments_BS[row] == number, batch.decoder_segments_BT[row] == number
        decoder = (batch.decoder_ids_BT[row, mine_T], batch.targets_BT[row, mine_T])
        found.append((batch.encoder_ids_BS[row, mine_S], *decoder))
    return found


def text_of(inputs, targets, first_sentinel=999):
    spans, current = {}, None
    for token in targets[:-1].tolist():
        if token > first_sentinel - 100:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for item in inputs[:-1].tolist() for t in spans.get(item, [item])]


pairs = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), max_size=60)


@given(pairs, st.integers(1, 5))
def test_twins_pack_the_same_and_rows_hold_what_they_can(pairs, open_rows):
    inputs, targets = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    order, borders = pack_numpy(inputs, targets, 20, 9, open_rows)
    for ours, theirs in zip((order, borders), _native.pack(inputs, targets, 20, 9, open_rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(order.tolist()) == list(range(len(pairs)))
    for first, last in pairwise(borders):
        row = order[first:last]
        assert 0 < inputs[row].sum() <= 20 and 0 < targets[row].sum() <= 9


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 13))
def test_pieces_are_the_documents(lengths, longest):
    order = permutation(len(lengths), 5)
    place, skip, length = cut_documents(np.array(lengths), order, longest)
    pieces = zip(place.tolist(), skip.tolist(), length.tolist(), strict=True)
    seen = [(d, s + i) for d, s, n in pieces for i in range(n)]
    assert seen == [(d, i) for d in order.tolist() for i in range(lengths[d])]
    assert length.size == 0 or 1 <= length.min() <= length.max() <= longest


def test_every_document_is_seen_once_an_epoch_by_itself(make_corpus, random_documents):
    documents = random_documents(300, longest=60, seed=3)
    dataset = opened(make_corpus(documents))
    rows = dataset.num_samples
    batch = dataset.batch(0, 2 * rows)
    for epoch in range(2):
        texts = [
            text_of(inputs, targets)
            for row in range(epoch * rows, (epoch + 1) * rows)
            for inputs, _, targets in samples_of(batch, row)
        ]
        assert sorted(texts) == sorted(documents)
    assert (batch.encoder_ids_BS != 0).mean() > 0.85  # rows are filled


def test_positions_of_a_sample_are_as_alone(make_corpus, random_documents):
    dataset = opened(make_corpus(random_documents(100)))
    batch = dataset.batch(0, dataset.num_samples)
    for row in range(len(batch.samples_B)):
        for inputs, shifted, targets in samples_of(batch, row):
            assert inputs[-1] == targets[-1] == 1 and shifted[0] == 0
            np.testing.assert_array_equal(shifted[1:], targets[:-1])
            assert targets[0] == 999  # sentinels begin anew
        np.testing.assert_array_equal(batch.encoder_segments_BS[row] != 0, batch.encoder_ids_BS[row] != 0)
        np.testing.assert_array_equal(batch.decoder_segments_BT[row] != 0, batch.targets_BT[row] != 0)


def test_twins_make_the_same_batches(make_corpus, random_documents, request):
    prefix = make_corpus([[5], *random_documents(100, longest=200)])
    compiled = opened(prefix, seed=3).batch(20, 30)
    request.getfixturevalue("without_extension")
    for ours, theirs in zip(compiled, opened(prefix, seed=3).batch(20, 30), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_batches_do_not_depend_on_their_borders(make_corpus, random_documents):
    prefix = make_corpus(random_documents(60))
    together = opened(prefix).batch(0, 40)
    for cut in (1, 17):
        parts = [opened(prefix).batch(0, cut), opened(prefix).batch(cut, 40 - cut)]
        for whole, *pieces in zip(together, *parts, strict=True):
            np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_evaluation_passes_once(make_corpus, random_documents):
    documents = random_documents(50)
    dataset = opened(make_corpus(documents), repeat=False)
    batch = dataset.batch(0, dataset.num_samples + 5)
    assert not batch.encoder_segments_BS[-5:].any() and not batch.targets_BT[-5:].any()
    assert sum(len(samples_of(batch, row)) for row in range(dataset.num_samples)) == len(documents)


@pytest.mark.parametrize(("encoder", "decoder"), [(64, 14), (512, 114), (191, 60), (350, 90)])
def test_every_length_fits_a_row(encoder, decoder):
    inputs, targets = sizes(packed_rules(encoder, decoder, 0.15, 3.0))
    assert (inputs <= encoder).all() and (targets <= decoder).all() and inputs.size > encoder


def test_other_objectives_are_refused(make_corpus):
    data = DataConfig(train=make_corpus([[5] * 90]), split="1,0,0", packing=True)
    with pytest.raises(UserError, match=r"data\.packing does not go with train\.objective=ul2"):
        open_split(data, "train", vocab_size=1000, seed=0, objective="ul2", **LENGTHS)
