"""Training a vocabulary: T5's special pieces, the same model twice, refusals for too little text."""

import gzip
import os
import re

import orjson
import pytest

from megaswitch.data.prep.sampling import quotas, repeated, sentences
from megaswitch.data.prep.train_tokenizer import main
from megaswitch.data.tokenizer import Tokenizer


@pytest.mark.parametrize("ending", ["", ".model"])
def test_writes_model_and_vocabulary(ending, write_jsonl, lines_of_text, tmp_path):
    path = write_jsonl(lines_of_text[:300])
    arguments = ["--input", str(path), "--vocab-size", "80", "--output", str(tmp_path / "out" / f"m{ending}")]
    assert main(arguments) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["m.model", "m.vocab"]
    tokenizer = Tokenizer(tmp_path / "out" / "m.model")
    assert (tokenizer.num_pieces, tokenizer.vocab_size) == (80, 180)
    lines = (tmp_path / "out" / "m.vocab").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[:3]] == ["<pad>", "</s>", "<unk>"] and len(lines) == 80


def test_the_same_text_gives_the_same_model(write_jsonl, lines_of_text, tmp_path):
    path = write_jsonl(lines_of_text[:300])
    for name in "ab":
        arguments = ["--input", str(path), "--vocab-size", "80", "--output", str(tmp_path / name)]
        assert main([*arguments, "--max-sentences", "100"]) == 0
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_sentences_are_a_fair_choice_of_lines():
    lines = [f"line {i}" for i in range(1000)]
    kept = sentences(["\n\n".join(lines[:500]), "\n".join(lines[500:])], 200)
    assert len(kept) == len(set(kept)) == 200 and set(kept) <= set(lines)
    assert kept == sentences(["\n".join(lines)], 200)
    early = sum(int(line.split()[1]) < 500 for line in kept)
    assert 65 < early < 135  # mean 100, standard deviation 6.3 without replacement
    assert sentences(["a\n\n b \n"], 10) == ["a", "b"]


@pytest.mark.parametrize(
    ("texts", "size", "code", "says"),
    [
        (["a few words only"], "5000", 65, "smaller --vocab-size"),
        (["words and more words for many characters"], "12", 65, "smaller --vocab-size"),
        (["", " "], "50", 65, "no text"),
        (["text"], "5", 64, "too small"),
    ],
)
def test_refusals(texts, size, code, says, write_jsonl, tmp_path, capsys):
    path = write_jsonl(texts)
    assert main(["--input", str(path), "--vocab-size", size, "--output", str(tmp_path / "m")]) == code
    assert says in capsys.readouterr().err and os.listdir(tmp_path) == ["input.jsonl"]


def test_bad_arguments(write_jsonl, tmp_path):
    path = str(write_jsonl(["text"]))
    arguments = ["--vocab-size", "50", "--output", str(tmp_path / "m")]
    assert main(["--input", path, *arguments, "--character-coverage", "1.5"]) == 64
    assert main(["--input", "gone.txt", *arguments]) == 66
    for temperature in ("0.5", "nan"):
        assert main(["--input", path, *arguments, "--temperature", temperature]) == 64
    assert main(["--input", "-", "--format", "text", *arguments, "--temperature", "2"]) == 64


def test_shares_by_temperature():
    counts = {"en": 8000, "de": 1000, "sw": 125, "none": 0}
    assert quotas(counts, 1.0, 10_000) == {"en": 8000, "de": 1000, "sw": 125}
    assert quotas(counts, 3.0, 700) == {"en": 400, "de": 200, "sw": 100}
    assert quotas(counts, 1e9, 300) == {"en": 100, "de": 100, "sw": 100}
    assert quotas({"en": 10**9, "sw": 1}, 1.0, 100) == {"en": 100, "sw": 1}
    assert repeated(["a", "b", "c"], 7) == ["a", "b", "c", "a", "b", "c", "a"]


@pytest.mark.parametrize("by_field", [True, False])
def test_a_small_language_gets_its_pieces(by_field, tmp_path, lines_of_text, capsys):
    """Greek is one line in thirty: with a temperature its words become pieces, without they do not."""
    greek = "η γλώσσα του κειμένου"
    texts = [(text, "en") for text in lines_of_text[:600]], [(greek, "el")] * 20
    paths = []
    for number, group in enumerate(texts):
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_bytes(b"".join(orjson.dumps({"text": a, "lang": b}) + b"\n" for a, b in group))
    arguments = ["--input", *map(str, paths), "--vocab-size", "90", "--character-coverage", "1"]
    for name, options in (("plain", []), ("hot", ["--temperature", "100"])):
        field = ["--language-key", "lang"] if by_field and options else []
        assert main([*arguments, *options, *field, "--output", str(tmp_path / name)]) == 0
    lengths = [len(Tokenizer(tmp_path / f"{name}.model").encode(greek)) for name in ("plain", "hot")]
    assert lengths[1] < lengths[0]
    assert re.search(r"(?<!\d)600 to 3[01]\d", capsys.readouterr().err)


def test_bytes_for_what_has_no_piece(write_jsonl, lines_of_text, tmp_path):
    path = write_jsonl(lines_of_text[:300])
    arguments = ["--input", str(path), "--vocab-size", "340", "--byte-fallback", "--output", str(tmp_path / "m")]
    assert main(arguments) == 0
    tokenizer = Tokenizer(tmp_path / "m.model")
    ids = tokenizer.encode("日本")
    assert 2 not in ids and tokenizer.decode(ids) == "日本"


def test_any_input_will_do(lines_of_text, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines_of_text[:150]))
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("\n".join(lines_of_text[150:300]))
    assert main(["--input", str(tmp_path), "--vocab-size", "80", "--output", str(tmp_path / "m")]) == 0
    (tmp_path / "all.text").write_text("\n".join(lines_of_text[:300]))
    arguments = ["--input", str(tmp_path / "all.text"), "--format", "text", "--vocab-size", "80"]
    assert main([*arguments, "--output", str(tmp_path / "n")]) == 0
    assert (tmp_path / "m.model").read_bytes() == (tmp_path / "n.model").read_bytes()
