"""The commands that look at corpora: what is shown, what damage is found, what is joined."""

import os

import numpy as np
import orjson
import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep import merge, show, verify
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import IndexedWriter

TEXTS = ["Return the index of the list.", "Open the file.", "A tensor holds numbers."]


@pytest.fixture
def prefix(model, tmp_path):
    return write(tmp_path / "corpus", Tokenizer(model).encode_batch(TEXTS), Tokenizer(model).facts)


def write(prefix, documents, facts, dtype="<u2"):
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for ids in documents:
            writer.add_document(ids)
        writer.finish(facts, [f"{prefix.name}.jsonl"])
    return str(prefix)


def test_inspect_shows_counts_first(prefix, model, capsys):
    assert show.main([prefix]) == 0
    lines = capsys.readouterr().out.splitlines()
    tokens = IndexedCorpus(prefix).num_tokens
    assert lines[:3] == ["sequences: 3", "documents: 3", f"tokens: {tokens}"]
    assert lines[-1] == "document 2: " + " ".join(map(str, Tokenizer(model).encode(TEXTS[2])))
    assert show.main([prefix, "--tokenizer", model, "--documents", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"document {i}: {TEXTS[i]}" for i in range(2)]


def test_inspect_as_json(prefix, model, capsys):
    assert show.main([prefix, "--json", "--documents", "1"]) == 0
    shown = orjson.loads(capsys.readouterr().out)
    assert list(shown)[:3] == ["sequences", "documents", "tokens"] and shown["documents"] == 3
    assert shown["first_documents"] == [Tokenizer(model).encode(TEXTS[0])] and shown["vocab_size"] == 220


def test_another_tokenizer_is_refused(model, tmp_path, capsys):
    other = write(tmp_path / "other", [[5]], TokenizerFacts("0" * 32, 120))
    assert show.main([other, "--tokenizer", model]) == 65
    assert verify.main([other, "--tokenizer", model]) == 65
    assert capsys.readouterr().err.count("fingerprints differ") == 2


def test_verify_finds_a_sound_corpus_sound(prefix, capsys):
    assert verify.main([prefix]) == 0
    assert "3 documents" in capsys.readouterr().out


def test_verify_finds_any_flipped_bit(prefix, capsys):
    for ending in ("bin", "idx"):
        with open(f"{prefix}.{ending}", "rb") as file:
            content = file.read()
        for place in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 8)
            with open(f"{prefix}.{ending}", "wb") as file:
                file.write(damaged)
            assert verify.main([prefix]) == 65, (ending, place)
        with open(f"{prefix}.{ending}", "wb") as file:
            file.write(content)
    assert verify.main([prefix]) == 0


def test_verify_without_checksums(model, tmp_path, capsys):
    facts = Tokenizer(model).facts
    prefix = write(tmp_path / "x", [[5, 6], [7, 219, 220, 8]], facts)
    assert verify.main([prefix]) == 65
    assert "the id 220 (document 1, token 4 of the file) is outside the vocabulary of 220" in capsys.readouterr().err
    os.remove(f"{prefix}.json")
    assert verify.main([prefix]) == 0
    assert "ids not compared" in capsys.readouterr().out
    assert verify.main([prefix, "--tokenizer", model]) == 65


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (34 + 4, -1, "negative length"),  # the length of sequence 1
        (34 + 3 * 4 + 8, 2, "offset of sequence 1"),  # low half of its offset
        (34 + 3 * 12 + 8, 3, "document 1 ends before it begins"),  # low half of border 1
    ],
)
def test_verify_finds_what_opening_does_not(offset, value, says, prefix, capsys):
    os.remove(f"{prefix}.json")
    with open(f"{prefix}.idx", "r+b") as file:
        file.seek(offset)
        file.write(np.array([value], "<i4").tobytes())
    IndexedCorpus(prefix)
    assert verify.main([prefix]) == 65
    assert says in capsys.readouterr().err


def test_merge_joins_in_order(model, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "_SEQUENCES_AT_ONCE", 2)
    facts, documents = Tokenizer(model).facts, [[d] * (d % 4 + 1) for d in range(5, 16)]
    a, b = write(tmp_path / "a", documents[:7], facts), write(tmp_path / "b", documents[7:], facts)
    assert merge.main([a, b, a, "--output", str(tmp_path / "all")]) == 0
    corpus = IndexedCorpus(tmp_path / "all")
    assert [corpus.document(d).tolist() for d in range(18)] == documents + documents[:7]
    assert corpus.sidecar.tokenizer == facts and corpus.sidecar.sources == ["a.jsonl", "b.jsonl", "a.jsonl"]
    assert verify.main([str(tmp_path / "all")]) == 0


def test_merge_keeps_documents_of_several_sequences(tmp_path):
    with IndexedWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add_documents(np.arange(10), np.array([2, 3, 1, 4]), np.array([2, 0, 2]))
        writer.finish()
    merge.merge([str(tmp_path / "a"), str(tmp_path / "a")], str(tmp_path / "all"))
    corpus = IndexedCorpus(tmp_path / "all")
    shown = [corpus.document(d).tolist() for d in range(6)]
    assert shown == [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9]] * 2 and corpus.num_sequences == 8


def test_merge_refuses_what_does_not_fit(prefix, tmp_path, capsys):
    other = write(tmp_path / "other", [[5]], TokenizerFacts("0" * 32, 120))
    wide = write(tmp_path / "wide", [[5]], IndexedCorpus(prefix).sidecar.tokenizer, "<i4")
    for second in (other, wide):
        assert merge.main([prefix, second, "--output", str(tmp_path / "all")]) == 65
    assert merge.main([prefix, "--output", prefix]) == 64
    assert merge.main([prefix, "gone", "--output", str(tmp_path / "all")]) == 66
    assert not any(name.startswith("all") for name in os.listdir(tmp_path))
