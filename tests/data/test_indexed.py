"""The indexed format: bytes built by hand are read, files written have the same bytes, and nothing corrupt is
opened."""

import logging
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.layout import DTYPE_CODES, dtype_for
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import DataError, MissingInputError

DTYPES = {code: dtype for code, dtype in DTYPE_CODES.items() if dtype.kind != "f"}


def idx_bytes(lengths, borders, *, code=8, width=2, magic=b"MMIDIDX\0\0", version=1, modes=b""):
    """An index by the table of the format, without any of the code under test."""
    content = magic + struct.pack("<Q", version) + struct.pack("<B", code)
    content += struct.pack("<Q", len(lengths)) + struct.pack("<Q", len(borders))
    content += b"".join(struct.pack("<i", length) for length in lengths)
    offsets = [sum(lengths[:i]) * width for i in range(len(lengths))]
    content += b"".join(struct.pack("<q", offset) for offset in offsets)
    return content + b"".join(struct.pack("<q", border) for border in borders) + modes


IDX = idx_bytes([3, 1, 2], [0, 2, 3])
BIN = struct.pack("<6H", 10, 11, 12, 20, 30, 31)


@pytest.fixture
def put(tmp_path):
    def put(idx=IDX, content=BIN, name="x.y"):
        (tmp_path / f"{name}.idx").write_bytes(idx)
        (tmp_path / f"{name}.bin").write_bytes(content)
        return str(tmp_path / name)

    return put


def test_reads_bytes_built_by_hand(put, caplog):
    with caplog.at_level(logging.WARNING):
        corpus = IndexedCorpus(put())
    assert (corpus.num_sequences, corpus.num_documents, corpus.num_tokens, corpus.dtype) == (3, 2, 6, np.dtype("<u2"))
    assert corpus.document(0).tolist() == [10, 11, 12, 20] and corpus.document(1).tolist() == [30, 31]
    starts_D, lengths_D = corpus.document_extents()
    assert starts_D.tolist() == [0, 4] and lengths_D.tolist() == [4, 2]
    assert "x.y.json is missing" in caplog.text and corpus.sidecar is None


def test_writes_the_same_bytes(tmp_path):
    prefix = tmp_path / "out.v1"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.add_documents(np.array([10, 11, 12, 20], np.int64), np.array([3, 1]), np.array([2]))
        writer.add_document([30, 31])
        writer.finish()
    assert (tmp_path / "out.v1.idx").read_bytes() == IDX
    assert (tmp_path / "out.v1.bin").read_bytes() == BIN
    assert sorted(os.listdir(tmp_path)) == ["out.v1.bin", "out.v1.idx", "out.v1.json"]


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_integer_type_travels_both_ways(code, tmp_path, put):
    dtype = DTYPES[code]
    documents = [[1, 2, 100], [7], [0, 127]]
    with IndexedWriter(tmp_path / "written", dtype) as writer:
        for ids in documents:
            writer.add_document(ids)
        writer.finish()
    by_hand = idx_bytes([3, 1, 2], [0, 1, 2, 3], code=code, width=dtype.itemsize)
    assert (tmp_path / "written.idx").read_bytes() == by_hand
    corpus = IndexedCorpus(put(by_hand, b"".join(np.array(ids, dtype).tobytes() for ids in documents)))
    assert [corpus.document(d).tolist() for d in range(3)] == documents


@settings(max_examples=25)
@given(documents=st.lists(st.lists(st.integers(0, 65_499), max_size=9), max_size=9))
def test_round_trip(tmp_path_factory, documents):
    prefix = tmp_path_factory.mktemp("trip") / "corpus"
    with IndexedWriter(prefix, dtype_for(65_499)) as writer:
        for ids in documents:
            writer.add_document(ids)
        sidecar = writer.finish()
    corpus = IndexedCorpus(prefix)
    assert [corpus.document(d).tolist() for d in range(corpus.num_documents)] == documents
    assert corpus.sidecar == sidecar and sidecar.documents == len(documents)


def test_dtype_by_vocabulary():
    assert dtype_for(65_499) == np.dtype("<u2") and dtype_for(65_500) == np.dtype("<i4")


REFUSED = {
    "magic": (idx_bytes([3, 1, 2], [0, 2, 3], magic=b"MMIDIDX\0\1"), BIN, "not an index of this format"),
    "version": (idx_bytes([3, 1, 2], [0, 2, 3], version=2), BIN, "version 2"),
    "unknown code": (idx_bytes([3, 1, 2], [0, 2, 3], code=9), BIN, "dtype code 9"),
    "float": (idx_bytes([3, 1, 2], [0, 2, 3], code=7), BIN, "dtype code 7"),
    "multimodal": (idx_bytes([3, 1, 2], [0, 2, 3], modes=b"\0\0\1"), BIN, "multimodal"),
    "empty index": (b"", BIN, "truncated: 0 bytes"),
    "half a header": (IDX[:20], BIN, "truncated: 20 bytes"),
    "index short by a byte": (IDX[:-1], BIN, "truncated or corrupt"),
    "index long by a byte": (IDX + b"\0", BIN, "truncated or corrupt"),
    "count of 2^63": (IDX[:18] + struct.pack("<Q", 1 << 63) + IDX[26:], BIN, "truncated or corrupt"),
    "borders of 2^64 - 1": (IDX[:26] + struct.pack("<Q", (1 << 64) - 1) + IDX[34:], BIN, "truncated or corrupt"),
    "no borders": (idx_bytes([], []), b"", "no document array"),
    "short bin": (IDX, BIN[:-2], "10 bytes where"),
    "odd bin": (IDX, BIN[:-1], "11 bytes where"),
    "long bin": (IDX, BIN + b"\0\0", "14 bytes where"),
    "empty bin": (IDX, b"", "0 bytes where"),
    "documents do not begin at 0": (idx_bytes([3, 1, 2], [1, 2, 3]), BIN, "from 1 to 3"),
    "documents do not end at n": (idx_bytes([3, 1, 2], [0, 2, 2]), BIN, "from 0 to 2"),
    "negative length": (idx_bytes([3, 1, -2], [0, 2, 3]), BIN[:4], "does not begin at 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_opening_refuses(case, put):
    idx, content, says = REFUSED[case]
    with pytest.raises(DataError, match=says) as caught:
        IndexedCorpus(put(idx, content))
    assert "x.y." in str(caught.value) and caught.value.exit_code == 65


@pytest.mark.parametrize("gone", [["idx"], ["bin"], ["idx", "bin"]])
def test_missing_files_are_named(gone, put):
    prefix = put()
    for ending in gone:
        os.remove(f"{prefix}.{ending}")
    with pytest.raises(MissingInputError) as caught:
        IndexedCorpus(prefix)
    assert f"{prefix}.idx" in str(caught.value) and f"{prefix}.bin" in str(caught.value)
    assert caught.value.exit_code == 66


def test_a_folder_is_no_index(tmp_path):
    (tmp_path / "x.idx").mkdir()
    (tmp_path / "x.bin").write_bytes(BIN)
    with pytest.raises(MissingInputError):
        IndexedCorpus(tmp_path / "x")


@settings(max_examples=300)
@given(flips=st.lists(st.tuples(st.integers(0, len(IDX) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_to_an_index_crashes(tmp_path_factory, flips):
    """Either refused, or all that is then read lies inside the file."""
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(IDX)
    for place, value in flips:
        content[place] = value
    (folder / "x.idx").write_bytes(content)
    (folder / "x.bin").write_bytes(BIN)
    try:
        corpus = IndexedCorpus(folder / "x")
        starts_D, lengths_D = corpus.document_extents()
        shown = [corpus.document(d) for d in range(corpus.num_documents)]
    except DataError:
        return
    assert (starts_D >= 0).all() and (lengths_D >= 0).all() and (starts_D + lengths_D <= corpus.num_tokens).all()
    assert sum(ids.size for ids in shown) <= 2 * corpus.num_tokens


def test_documents_out_of_order_are_refused_where_they_are_used(put):
    corpus = IndexedCorpus(put(idx_bytes([3, 1, 2], [0, 3, 1, 3])))
    with pytest.raises(DataError, match="not in order"):
        corpus.document_extents()


def test_a_file_that_shrinks_is_refused_before_it_is_read(put):
    prefix = put()
    corpus = IndexedCorpus(prefix)
    corpus.check_unchanged()
    os.truncate(f"{prefix}.bin", 4)
    with pytest.raises(DataError, match="shrank from 12 to 4 bytes"):
        corpus.check_unchanged()


def test_an_empty_corpus_opens(put):
    corpus = IndexedCorpus(put(idx_bytes([], [0]), b""))
    assert (corpus.num_sequences, corpus.num_documents, corpus.num_tokens) == (0, 0, 0)
    assert [array.size for array in corpus.document_extents()] == [0, 0]
