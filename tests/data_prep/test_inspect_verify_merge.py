"""The commands that look at corpora: what is shown, what damage is found, what is joined."""

import os
from fractions import Fraction

import numpy as np
import orjson
import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep import merge, show, split, verify
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.split import split_documents
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


def test_inspect_shows_any_documents(prefix, model, capsys):
    assert show.main([prefix, "--tokenizer", model, "--from", "1", "--documents", "9"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"document {i}: {TEXTS[i]}" for i in (1, 2)]


def test_inspect_as_json(prefix, model, capsys):
    assert show.main([prefix, "--json", "--documents", "1"]) == 0
    shown = orjson.loads(capsys.readouterr().out)
    assert list(shown)[:3] == ["sequences", "documents", "tokens"] and shown["documents"] == 3
    assert shown["shown"] == [Tokenizer(model).encode(TEXTS[0])] and shown["vocab_size"] == 220


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


def test_verify_names_the_damaged_blocks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("megaswitch.data.sidecar.BLOCK_BYTES", 100)
    prefix = write(tmp_path / "x", [list(range(100, 140))] * 10, TokenizerFacts("0" * 32, 120))
    with open(f"{prefix}.bin", "r+b") as file:
        file.seek(332)
        file.write(b"\0")
    assert verify.main([prefix]) == 65
    assert "in its blocks of 64 MiB number 3" in capsys.readouterr().err


def test_merge_refuses_damaged_ids(prefix, tmp_path, capsys):
    with open(f"{prefix}.bin", "r+b") as file:
        file.write(b"\7\0\7\0")
    assert merge.main([prefix, prefix, "--output", str(tmp_path / "all")]) == 65
    assert "checksum" in capsys.readouterr().err and not os.path.exists(tmp_path / "all.idx")


def contents(prefix):
    return [open(f"{prefix}.{ending}", "rb").read() for ending in ("bin", "idx")]


@pytest.mark.parametrize("parts", [1, 3, 7, 200])
def test_parts_joined_are_the_whole(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "_SEQUENCES_AT_ONCE", 16)
    rng = np.random.default_rng(parts)
    lengths = [5000, *rng.integers(1, 300, 199).tolist()]  # the first is longer than most parts
    whole = write(tmp_path / "x", [rng.integers(3, 99, n).tolist() for n in lengths], TokenizerFacts("0" * 32, 120))
    assert split.main([whole, "--parts", str(parts), "--output", str(tmp_path / "p")]) == 0
    prefixes = [f"{tmp_path}/p-{number:05d}" for number in range(parts)]
    tokens = [IndexedCorpus(prefix).num_tokens for prefix in prefixes]
    if parts <= 7:
        assert max(tokens) <= max(5000, sum(lengths) / parts) + 300
    merge.merge(prefixes, str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(whole)
    assert all(IndexedCorpus(prefix).sidecar.tokenizer.pieces == 120 for prefix in prefixes)


def test_shares_take_documents_by_number(tmp_path):
    whole = write(tmp_path / "x", [[d] * (d % 3 + 1) for d in range(3, 203)], TokenizerFacts("0" * 32, 120))
    arguments = [whole, "--shares", "train=0.9", "valid=0.1", "--output", str(tmp_path / "x")]
    assert split.main(arguments) == 0
    train, valid = (IndexedCorpus(tmp_path / f"x-{name}") for name in ("train", "valid"))
    shown = [[corpus.document(d).tolist() for d in range(corpus.num_documents)] for corpus in (train, valid)]
    assert [len(part) for part in shown] == [180, 20] and all(part == sorted(part) for part in shown)
    assert sorted(shown[0] + shown[1]) == [[d] * (d % 3 + 1) for d in range(3, 203)]
    chosen = split_documents(200, (Fraction(9, 10), Fraction(1, 10)))[1]
    assert [ids[0] - 3 for ids in shown[1]] == chosen.tolist()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--parts", "4"], 64),
        (["--shares", "train"], 64),
        (["--shares", "a=0"], 64),
        (["--shares", "a=1", "b=x"], 64),
        (["--shares", "a=1", "b=0"], 64),
        (["--shares", "../a=1"], 64),
    ],
)
def test_split_refuses_what_makes_no_sense(arguments, code, prefix, tmp_path, capsys):
    before = sorted(os.listdir(tmp_path))
    assert split.main([prefix, *arguments, "--output", str(tmp_path / "p")]) == code
    assert sorted(os.listdir(tmp_path)) == before
