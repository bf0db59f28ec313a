"""The stream: each epoch shows every token once, in an order of its own, across borders too; readers agree."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import _native
from megaswitch.data.batch import empty_batch
from megaswitch.data.denoise import Kind, Rule
from megaswitch.data.index import IndexStore
from megaswitch.data.parts import Filler, Special, StreamPart
from megaswitch.data.stream import Documents, Epochs, Stream
from megaswitch.utils.errors import DataError


def documents(lengths, dtype=np.uint16):
    """Documents whose tokens are 0, 1, 2 ... in the file, so that a token is its own place."""
    lengths_N = np.array(lengths, np.int64)
    starts_N = np.cumsum(lengths_N) - lengths_N
    tokens = np.arange(int(lengths_N.sum())).astype(dtype)
    return Documents("corpus", tokens, np.arange(lengths_N.size), starts_N, lengths_N)


def make_stream(lengths, seed, dtype=np.uint16):
    docs = documents(lengths, dtype)
    return Stream(docs, Epochs(docs.lengths_N, IndexStore(None), (), seed))


def read(stream, position, count):
    return stream.read(position, count).tolist()


def read_compiled(stream, within, length, vocab_size=1 << 17):
    """Pieces by the compiled reader, put together again from prefix and rest."""
    part = StreamPart(stream, [Rule(Kind.PREFIX, length, length - 1)])
    filler = Filler(empty_batch(0, len(within), (length, length), packed=False), Special(1 << 20, vocab_size))
    numbers = np.array(within)
    part.fill(filler, np.arange(len(within)), numbers, np.arange(len(within), dtype=np.uint64))
    filler.finish(2)
    eos = 1  # token 1 may stand in the text too: what stands behind the last EOS is padding
    rows = zip(filler.batch.encoder_ids_BS.tolist(), filler.batch.targets_BT.tolist(), strict=True)
    sides = [[row[: len(row) - row[::-1].index(eos) - 1] for row in pair] for pair in rows]
    return [inputs + targets for inputs, targets in sides]


lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


@given(lengths, st.integers(0, 5), st.integers(1, 40))
def test_pieces_cover_every_epoch_exactly_once(lengths, seed, raw_length):
    stream = make_stream(lengths, seed)
    total = stream.num_tokens
    pieces = -(-3 * total // raw_length)
    tokens = [token for i in range(pieces) for token in read(stream, i * raw_length, raw_length)]
    for epoch in range(3):
        assert sorted(tokens[epoch * total : (epoch + 1) * total]) == list(range(total))


@given(lengths, st.integers(0, 100), st.integers(1, 50))
def test_any_piece_can_be_read_alone(lengths, position, count):
    whole = read(make_stream(lengths, 3), 0, position + count)
    assert read(make_stream(lengths, 3), position, count) == whole[position:]


@given(lengths, st.integers(0, 200), st.integers(2, 60), st.sampled_from(["u1", "i1", "i2", "u2", "i4", "i8"]))
def test_twins_read_the_same(lengths, first, raw_length, dtype):
    stream = make_stream(lengths, 4, dtype)
    within = [first, first + 1, first + 7]
    assert read_compiled(stream, within, raw_length) == [read(stream, w * raw_length, raw_length) for w in within]


@given(lengths, st.integers(0, 40), st.lists(st.integers(2, 30), min_size=1, max_size=7))
def test_rules_in_turn_cut_one_stream_without_gap(lengths, first, raw_lengths):
    stream = make_stream(lengths, 4)
    part = StreamPart(stream, [Rule(Kind.PREFIX, length, length - 1) for length in raw_lengths])
    begins = part.position(np.arange(first, first + 20)).tolist()
    assert part.position(np.zeros(1, np.int64)).tolist() == [0]
    for i, (begin, end) in enumerate(pairwise(begins)):
        assert end - begin == raw_lengths[(first + i) % len(raw_lengths)]
    assert part.position(np.array([part.num_samples]))[0] >= stream.num_tokens
    assert part.position(np.array([part.num_samples - 1]))[0] < stream.num_tokens


def test_documents_stay_whole_and_orders_differ():
    stream = make_stream([5] * 40, 1)
    epochs = [np.array(read(stream, e * 200, 200)).reshape(40, 5) for e in range(2)]
    for tokens in epochs:
        assert (np.diff(tokens, axis=1) == 1).all() and (tokens[:, 0] % 5 == 0).all()
    assert epochs[0].tolist() != epochs[1].tolist()
    assert read(make_stream([5] * 40, 2), 0, 200) != epochs[0].reshape(-1).tolist()


def test_going_back_and_forth_changes_nothing():
    stream = make_stream([3, 4, 5], 1)
    first = [read(stream, e * 12, 12) for e in range(6)]
    assert [read(stream, e * 12, 12) for e in (5, 0, 3, 1, 2, 4)] == first[5:] + [first[e] for e in (0, 3, 1, 2, 4)]


def test_threads_that_ask_at_once_get_the_same_epoch():
    stream, found = make_stream([2] * 50_000, 1), []
    threads = [threading.Thread(target=lambda: found.append(stream.epochs.get(7))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(epoch is found[0] for epoch in found)


def test_an_epoch_made_ahead_is_the_one_that_is_asked_for():
    stream, other = make_stream([1] * (1 << 18), 1), make_stream([1] * (1 << 18), 1)
    stream.epochs.make_ahead(1)
    np.testing.assert_array_equal(stream.epochs.get(1).order_N, other.epochs.get(1).order_N)


def test_offsets_beyond_two_to_the_31(tmp_path):
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(2 * ((1 << 33) + 4))  # sparse: it takes no room
        file.seek(2 << 33)
        file.write(np.arange(5, 9, dtype="<u2").tobytes())
    tokens = np.memmap(path, "<u2", mode="r").view(np.ndarray)
    lengths_N = np.array([1 << 33, 4], np.int64)
    docs = Documents("corpus", tokens, np.arange(2), np.array([0, 1 << 33]), lengths_N)
    stream = Stream(docs, Epochs(lengths_N, IndexStore(None), (), 0))
    place = ((1 << 33) - 4) // 8 if stream.epochs.get(0).order_N[0] == 0 else 0
    compiled = read_compiled(stream, [place, place + 1], 8)
    assert compiled == [read(stream, 8 * w, 8) for w in (place, place + 1)]
    assert any(5 in piece for piece in compiled)


def rows_of(starts, order, ends, offset=0, tokens=5):
    batch = empty_batch(0, 1, (8, 8), packed=False)
    rows = _native.Rows(batch.encoder_ids_BS, batch.targets_BT, batch.decoder_ids_BT, None, None)
    numbers = [np.array(values, np.int64) for values in (starts, order, ends)]
    zero, rules = np.zeros(1, np.int64), np.array([[2, 8, 7, 0, -1, 0]], np.int64)
    rows.add_stream(
        *(zero, np.arange(tokens, dtype=np.uint16), numbers[0], 10, [(numbers[1], numbers[2])], zero),
        *(np.array([offset]), np.zeros(1, np.uint64), rules, zero, 9, 1),
    )
    return rows


@pytest.mark.parametrize(
    ("starts", "order", "ends", "offset"),
    [
        ([0], [0], [100], 0),
        ([0], [0], [3], 0),  # the epoch ends, and there is no other
        ([3], [0], [9], 0),
        ([-5], [0], [9], 0),
        ([1 << 62], [0], [9], 0),
        ([0], [7], [9], 0),
        ([0], [-1], [9], 0),
        ([0, 0], [0, 1], [9, 5], 6),
        ([0], [0], [9], -3),
        ([0, 0], [0, 1], [-(1 << 63), 9], 0),
        ([0], [0], [(1 << 63) - 1], (1 << 63) - 2),
    ],
)
def test_reading_outside_the_file_is_an_error_not_a_crash(starts, order, ends, offset):
    with pytest.raises(IndexError, match="outside"):
        rows_of(starts, order, ends, offset).make(1)


def test_id_outside_the_vocabulary_names_the_document():
    stream = make_stream([10, 10, 10], 0)
    stream.documents.tokens[25] = 900
    with pytest.raises(DataError, match=r"corpus\.bin: document 2 holds the id 900, but .* vocabulary has 900"):
        read_compiled(stream, [0], 30, vocab_size=900)


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8"])
def test_negative_id_names_the_document(dtype):
    stream = make_stream([10, 10], 0, dtype)
    stream.documents.tokens[3] = -1
    with pytest.raises(DataError, match="document 0 holds the id -1"):
        read_compiled(stream, [0], 20, vocab_size=900)


def test_no_tokens_is_refused():
    with pytest.raises(DataError, match="no tokens"):
        make_stream([0, 0], 0)
