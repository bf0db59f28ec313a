"""Training a vocabulary: T5's special pieces, the same model twice, refusals for too little text."""

import os

import pytest

from megaswitch.data.prep.train_tokenizer import main, sentences
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
