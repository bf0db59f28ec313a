"""Batches: a function of seed and sample index alone, every token seen, evaluation ends in masked rows, clear
refusals."""

import os

import numpy as np
import pytest

from megaswitch.data.batch import Batch
from megaswitch.data.config import DataConfig
from megaswitch.data.opening import open_split
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.utils.errors import DataError, MissingInputError, UserError

LENGTHS = {"encoder_length": 64, "decoder_length": 14}
RAW = 70


def opened(config, split="train", *, seed=0, vocab_size=1000, repeat=True, **lengths):
    return open_split(config, split, vocab_size=vocab_size, seed=seed, repeat=repeat, **(LENGTHS | lengths))


def raw_tokens(batch, first_sentinel=999):
    """The text of each sample, put together again from inputs and targets."""
    pieces = []
    for inputs, targets in zip(batch.encoder_ids_BS.tolist(), batch.targets_BT.tolist(), strict=True):
        spans, number = {}, -1
        for token in targets[: targets.index(1)]:
            if token == first_sentinel - number - 1:
                number += 1
                spans[token] = []
            else:
                spans[first_sentinel - number].append(token)
        text = inputs[: inputs.index(1)]
        pieces.append([token for item in text for token in spans.get(item, [item])])
    return pieces


@pytest.fixture
def corpus(make_corpus, random_documents):
    return make_corpus(random_documents(100))


@pytest.fixture
def whole(corpus):
    return DataConfig(train=corpus, split="1,0,0")


def assert_same(first: Batch, second: Batch):
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_shapes_types_and_shift(whole):
    batch = opened(whole).batch(5, 4)
    assert batch.encoder_ids_BS.shape == (4, 64) and batch.targets_BT.shape == batch.decoder_ids_BT.shape == (4, 14)
    assert all(array.dtype == np.int64 for array in batch[:4]) and batch.samples_B.tolist() == [5, 6, 7, 8]
    assert (batch.decoder_ids_BT[:, 0] == 0).all()
    np.testing.assert_array_equal(batch.decoder_ids_BT[:, 1:], batch.targets_BT[:, :-1])
    assert (batch.encoder_ids_BS[:, -1] == 1).all() and (batch.targets_BT[:, -1] == 1).all()
    assert (batch.targets_BT[:, 0] == 999).all()


def test_batches_do_not_depend_on_their_borders(whole):
    dataset = opened(whole)
    together = dataset.batch(0, 60)
    for cut in (1, 7, 30, 59):
        parts = [opened(whole).batch(0, cut), dataset.batch(cut, 60 - cut)]
        joined = (np.concatenate(arrays) for arrays in zip(*(part[:4] for part in parts), strict=True))
        assert_same(together, Batch(*joined))


@pytest.mark.parametrize("seed", [0, -1, (1 << 64) + 5, -(1 << 63)])
@pytest.mark.parametrize("first", [0, 97, 10**12])
def test_any_sample_of_any_seed(first, seed, whole):
    alone = opened(whole, seed=seed).batch(first + 1, 1)
    together = opened(whole, seed=seed).batch(first, 3)
    assert_same(alone, together.rows(1, 2))
    assert alone.encoder_ids_BS.all()


def test_seeds_change_order_and_masks(whole):
    one, other = opened(whole, seed=1).batch(0, 8), opened(whole, seed=2).batch(0, 8)
    assert not np.array_equal(one.encoder_ids_BS, other.encoder_ids_BS)


def test_masks_change_where_text_repeats(make_corpus):
    config = DataConfig(train=make_corpus([[5] * RAW]), split="1,0,0")
    batch = opened(config).batch(0, 20)
    assert len({tuple(row) for row in batch.targets_BT.tolist()}) > 10


def test_an_epoch_is_every_token_once_in_documents_of_shuffled_order(make_corpus, random_documents):
    documents = random_documents(37, seed=4)
    dataset = opened(DataConfig(train=make_corpus(documents), split="1,0,0"))
    tokens = sum(map(len, documents))
    pieces = raw_tokens(dataset.batch(0, 3 * dataset.num_samples))
    stream = [token for piece in pieces for token in piece]
    assert all(len(piece) == RAW for piece in pieces) and dataset.num_samples == -(-tokens // RAW)
    epochs = [stream[e * tokens : (e + 1) * tokens] for e in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(token for ids in documents for token in ids)
    assert epochs[0] != epochs[1]


def test_twins_make_the_same_batches(whole, request):
    compiled = opened(whole, seed=3).batch(20, 12)
    request.getfixturevalue("without_extension")
    assert_same(compiled, opened(whole, seed=3).batch(20, 12))


def test_one_short_document_wraps_around_in_training(make_corpus):
    config = DataConfig(train=make_corpus([[7, 8, 9]]), split="1,0,0")
    dataset = opened(config)
    assert dataset.num_samples == 1
    assert raw_tokens(dataset.batch(2, 1))[0] == [[7, 8, 9][(2 * RAW + i) % 3] for i in range(RAW)]


def test_splits_share_no_document(make_corpus):
    # The documents' first tokens differ, and each document is as long as a piece.
    config = DataConfig(train=make_corpus([[d + 10] * RAW for d in range(100)]), split="0.8,0.1,0.1")
    seen = {}
    for split in ("train", "valid", "test"):
        dataset = opened(config, split, repeat=False)
        seen[split] = {piece[0] for piece in raw_tokens(dataset.batch(0, dataset.num_samples))}
    assert [len(documents) for documents in seen.values()] == [80, 10, 10]
    assert sorted(set.union(*seen.values())) == list(range(10, 110))


def test_own_validation_corpus_leaves_all_but_the_test_part_to_training(make_corpus):
    train = make_corpus([[d + 10] * RAW for d in range(100)])
    config = DataConfig(train=train, valid=make_corpus([[500] * RAW] * 3, "valid"), split="0.8,0.1,0.1")
    assert opened(config).num_samples == 90
    assert opened(config, "valid", repeat=False).num_samples == 3
    assert (opened(config, "valid").batch(0, 1).encoder_ids_BS[0, 0]) == 500


def test_evaluation_ends_in_masked_rows(make_corpus, random_documents):
    config = DataConfig(train=make_corpus(random_documents(30)), split="1,0,0")
    dataset, endless = opened(config, repeat=False), opened(config)
    count = dataset.num_samples
    batch = dataset.batch(count - 2, 5)
    assert batch.samples_B.tolist() == [count - 2 + i for i in range(5)]
    np.testing.assert_array_equal(batch.encoder_ids_BS[:2], endless.batch(count - 2, 2).encoder_ids_BS)
    assert not batch.encoder_ids_BS[2:].any() and not batch.targets_BT[2:].any() and not batch.decoder_ids_BT[2:].any()
    assert (batch.targets_BT[:2] != 0).all()
    assert not dataset.batch(count + 100, 3).encoder_ids_BS.any()


def test_blend_takes_its_shares(make_corpus):
    a, b = make_corpus([[5] * 300], "a"), make_corpus([[6] * 3000], "b")
    dataset = opened(DataConfig(train=f"0.25:{a},0.75:{b}", split="1,0,0"))
    firsts = dataset.batch(0, 400).encoder_ids_BS[:, 0]
    for n in range(1, 401):
        assert abs((firsts[:n] == 5).sum() - n / 4) < 1
    # b has 43 samples (3000 / 70 rounded up) at three quarters: 57.3 samples, rounded up, show all of it.
    assert dataset.num_samples == 58


def test_evaluation_of_a_blend_shows_each_sample_once(make_corpus):
    a, b = make_corpus([[5] * 300], "a"), make_corpus([[6] * 3000], "b")
    dataset = opened(DataConfig(train=f"0.5:{a},0.5:{b}", split="1,0,0"), repeat=False)
    firsts = dataset.batch(0, 100).encoder_ids_BS[:, 0]
    assert dataset.num_samples == 5 + 43 and [(firsts == i).sum() for i in (5, 6, 0)] == [5, 43, 52]


def test_fingerprint_says_what_the_data_is(make_corpus, random_documents, whole):
    moved = DataConfig(train=make_corpus(random_documents(100), "moved"), split="1,0,0")
    assert opened(whole).fingerprint == opened(moved, seed=9).fingerprint
    others = [
        opened(DataConfig(train=make_corpus(random_documents(100, seed=1), "other"), split="1,0,0")),
        opened(DataConfig(train=whole.train)),
        opened(whole, encoder_length=128, decoder_length=29),
        opened(DataConfig(train=whole.train, split="1,0,0", mean_span_length=2.0), decoder_length=20),
        opened(DataConfig(train=f"0.5:{whole.train},0.5:{moved.train}", split="1,0,0")),
    ]
    assert len({opened(whole).fingerprint, *(dataset.fingerprint for dataset in others)}) == 6


def test_refuses_nothing_to_read(make_corpus):
    with pytest.raises(UserError, match=r"data\.train is empty"):
        opened(DataConfig())
    with pytest.raises(MissingInputError, match=r"nowhere\.idx and .*nowhere\.bin"):
        opened(DataConfig(train="nowhere"))
    with pytest.raises(DataError, match=r"empty \(0 documents, 0 tokens\)"):
        opened(DataConfig(train=make_corpus([], "none")))
    with pytest.raises(DataError, match=r"empty \(2 documents, 0 tokens\)"):
        opened(DataConfig(train=make_corpus([[], []], "hollow")))


def test_refuses_parts_that_cannot_be_evaluated(make_corpus, whole):
    with pytest.raises(DataError, match=r"the valid split of .* has no documents.*set data\.valid"):
        opened(whole, "valid", repeat=False)
    config = DataConfig(train=make_corpus([[5] * 9] * 3, "short"), split="1,1,1")
    with pytest.raises(DataError, match=r"9 tokens in 1 documents, fewer than one sample takes \(70\)"):
        opened(config, "valid", repeat=False)


def test_refuses_a_vocabulary_too_small(whole):
    with pytest.raises(UserError, match=r"1000 ids .* set model\.vocab_size to 1000 or more"):
        opened(whole, vocab_size=999)


def test_refuses_ids_outside_the_vocabulary(make_corpus):
    prefix = make_corpus([[5] * RAW, [2000] * RAW], "wild")
    with pytest.raises(DataError, match=r"wild\.bin: document 1 holds the id 2000"):
        opened(DataConfig(train=prefix, split="1,0,0")).batch(0, 2)


def test_refuses_an_unknown_or_other_tokenizer(make_corpus):
    bare = make_corpus([[5] * RAW], "bare", tokenizer=None)
    with pytest.raises(UserError, match=r"set data\.tokenizer"):
        opened(DataConfig(train=bare, split="1,0,0"))
    a, b = make_corpus([[5]], "a"), make_corpus([[5]], "b", tokenizer=TokenizerFacts("0" * 32, 900))
    with pytest.raises(DataError, match="another tokenizer"):
        opened(DataConfig(train=f"1:{a},1:{b}"))


def test_refuses_a_decoder_too_short(whole):
    with pytest.raises(UserError, match=r"set model\.decoder_length to 14"):
        opened(whole, decoder_length=13)


def test_refuses_a_file_that_shrinks_while_in_use(whole):
    dataset = opened(whole)
    dataset.batch(0, 1)
    os.truncate(f"{whole.train}.bin", 10)
    with pytest.raises(DataError, match="shrank"):
        dataset.batch(1, 1)


def test_refuses_samples_below_zero(whole):
    with pytest.raises(UserError, match="numbered from 0"):
        opened(whole).batch(-1, 2)
