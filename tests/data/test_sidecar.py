"""The sidecar: what it says is compared with the corpus, and one that cannot be understood is refused."""

import os
from dataclasses import replace

import orjson
import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.sidecar import BLOCK_BYTES, FORMAT_VERSION, BlockDigest, file_digest, read_sidecar
from megaswitch.utils.errors import DataError, MissingInputError


def test_says_what_the_corpus_is(make_corpus, facts):
    prefix = make_corpus([[1, 2], [3]])
    sidecar = read_sidecar(prefix)
    assert (sidecar.sequences, sidecar.documents, sidecar.tokens, sidecar.dtype) == (2, 2, 3, "uint16")
    assert sidecar.tokenizer == facts and facts.vocab_size == 1000 and sidecar.format_version == FORMAT_VERSION
    assert sidecar.checksums == {ending: file_checksum_of(prefix, ending) for ending in ("bin", "idx")}


def file_checksum_of(prefix, ending):
    import xxhash

    with open(f"{prefix}.{ending}", "rb") as file:
        return xxhash.xxh3_128_hexdigest(file.read())


def test_checksums_of_blocks(tmp_path):
    """Whatever the pieces in which the bytes come."""
    import xxhash

    content = bytes(range(256)) * (BLOCK_BYTES // 256) + b"tail"
    (tmp_path / "x").write_bytes(content)
    whole = file_digest(tmp_path / "x")
    by_hand = [xxhash.xxh3_64_hexdigest(part) for part in (content[:BLOCK_BYTES], b"tail")]
    assert whole.blocks() == by_hand and whole.whole() == xxhash.xxh3_128_hexdigest(content)
    uneven = BlockDigest()
    for part in (content[:5], content[5 : BLOCK_BYTES - 1], content[BLOCK_BYTES - 1 :], b""):
        uneven.update(part)
    assert (uneven.blocks(), uneven.whole()) == (by_hand, whole.whole())
    assert BlockDigest().blocks() == []


def test_checksum_of_a_missing_file(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.bin"):
        file_digest(tmp_path / "gone.bin")


def test_counts_of_another_corpus_are_refused(make_corpus):
    prefix, other = make_corpus([[1, 2], [3]]), make_corpus([[1, 2]], "other")
    os.replace(f"{other}.json", f"{prefix}.json")
    with pytest.raises(DataError, match="do not belong together"):
        IndexedCorpus(prefix)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"format_version": 99}',
        b'{"format_version": 1}',
        b'{"format_version": 1, "sequences": "2", "documents": 2, "tokens": 3, "dtype": "uint16"}',
        b'{"format_version": 1, "sequences": 2, "documents": 2, "tokens": 3, "dtype": "uint16", "tokenizer": 5}',
        b'{"format_version": 1, "sequences": 2, "documents": 2, "tokens": 3, "dtype": "uint16", "tokenizer": {"x": 5}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_garbage_is_refused(content, make_corpus):
    prefix = make_corpus([[1, 2], [3]])
    with open(f"{prefix}.json", "wb") as file:
        file.write(content)
    with pytest.raises(DataError, match=r"corpus\.json"):
        read_sidecar(prefix)


def test_fields_of_later_programs_are_passed_over(make_corpus):
    prefix = make_corpus([[1]])
    sidecar = read_sidecar(prefix)
    with open(f"{prefix}.json", "wb") as file:
        file.write(orjson.dumps({**orjson.loads(sidecar.to_bytes()), "colour": "green"}))
    assert read_sidecar(prefix) == replace(sidecar)
