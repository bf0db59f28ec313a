"""The sample index: each epoch shows every token once, in an order of its own, across borders too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import _native
from megaswitch.data.stream import Documents, Epoch, Stream, gather_numpy
from megaswitch.utils.errors import DataError


def documents(lengths, dtype=np.uint16):
    """Documents whose tokens are 0, 1, 2 ... in the file, so that a token is its own place."""
    lengths_N = np.array(lengths, np.int64)
    starts_N = np.cumsum(lengths_N) - lengths_N
    tokens = np.arange(int(lengths_N.sum())).astype(dtype)
    return Documents("corpus", tokens, np.arange(lengths_N.size), starts_N, lengths_N)


def read(stream, position, count):
    out = np.empty(count, np.int64)
    stream.read(position, out)
    return out.tolist()


lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


@given(lengths, st.integers(0, 5), st.integers(1, 40))
def test_pieces_cover_every_epoch_exactly_once(lengths, seed, raw_length):
    stream = Stream(documents(lengths), 1 << 16, seed)
    total = stream.num_tokens
    pieces = -(-3 * total // raw_length)
    tokens = [token for i in range(pieces) for token in read(stream, i * raw_length, raw_length)]
    for epoch in range(3):
        assert sorted(tokens[epoch * total : (epoch + 1) * total]) == list(range(total))


@given(lengths, st.integers(0, 100), st.integers(1, 50))
def test_any_piece_can_be_read_alone(lengths, position, count):
    stream = Stream(documents(lengths), 1 << 16, 3)
    whole = read(stream, 0, position + count)
    assert read(Stream(documents(lengths), 1 << 16, 3), position, count) == whole[position:]


@given(
    lengths, st.integers(0, 200), st.integers(1, 60), st.sampled_from(["u1", "i1", "i2", "u2", "i4", "i8"]), st.data()
)
def test_twins_gather_the_same(lengths, offset, room, dtype, data):
    docs = documents(lengths, dtype)
    order_N = np.array(data.draw(st.permutations(range(len(lengths)))), np.int64)
    epoch = Epoch(order_N, np.cumsum(docs.lengths_N[order_N]))
    vocab = data.draw(st.integers(1, 120))
    ours, theirs = np.full(room, -7), np.full(room, -7)
    expected = gather_numpy(docs, epoch, offset, vocab, ours)
    assert expected == _native.gather(docs.tokens, docs.starts_N, order_N, epoch.ends_N, offset, vocab, theirs)
    assert ours.tolist() == theirs.tolist()
    assert expected[0] == max(0, min(room, sum(lengths) - offset))


def test_documents_stay_whole_and_orders_differ():
    stream = Stream(documents([5] * 40), 1 << 16, 1)
    epochs = [np.array(read(stream, e * 200, 200)).reshape(40, 5) for e in range(2)]
    for tokens in epochs:
        assert (np.diff(tokens, axis=1) == 1).all() and (tokens[:, 0] % 5 == 0).all()
    assert epochs[0].tolist() != epochs[1].tolist()
    assert read(Stream(documents([5] * 40), 1 << 16, 2), 0, 200) != epochs[0].reshape(-1).tolist()


def test_going_back_and_forth_changes_nothing():
    stream = Stream(documents([3, 4, 5]), 1 << 16, 1)
    first = [read(stream, e * 12, 12) for e in range(5)]
    assert [read(stream, e * 12, 12) for e in (4, 0, 3, 1, 2)] == [first[e] for e in (4, 0, 3, 1, 2)]


def test_offsets_beyond_two_to_the_31():
    # The lengths claim more tokens than a test can hold; only what lies in the array may be read.
    lengths_N = np.array([1 << 33, 4], np.int64)
    docs = Documents("corpus", np.arange(4, dtype=np.uint16), np.arange(2), np.array([-(1 << 33), 0]), lengths_N)
    epoch = Epoch(np.arange(2), np.cumsum(lengths_N))
    out = np.empty(4, np.int64)
    copied = _native.gather(docs.tokens, docs.starts_N, epoch.order_N, epoch.ends_N, (1 << 33) + 1, 10, out)
    assert copied == (3, -1, 0) and out[:3].tolist() == [1, 2, 3]


def test_reading_outside_the_file_is_an_error_not_a_crash():
    order_N, ends_N = np.arange(1), np.array([100])
    with pytest.raises(IndexError, match="outside"):
        _native.gather(np.arange(5, dtype=np.uint16), np.array([0]), order_N, ends_N, 0, 10, np.empty(50, np.int64))


def test_id_outside_the_vocabulary_names_the_document():
    docs = documents([10, 10, 10])
    docs.tokens[25] = 900
    stream = Stream(docs, 900, 0)
    with pytest.raises(
        DataError, match=r"corpus\.bin: document 2 holds the id 900, but the model's vocabulary has 900"
    ):
        read(stream, 0, 30)


def test_negative_id_names_the_document(without_extension):
    docs = documents([10, 10], "i4")
    docs.tokens[3] = -1
    with pytest.raises(DataError, match="document 0 holds the id -1"):
        read(Stream(docs, 900, 0), 0, 20)


def test_no_tokens_is_refused():
    with pytest.raises(DataError, match="no tokens"):
        Stream(documents([0, 0]), 900, 0)
