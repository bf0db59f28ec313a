"""Preprocessing: the same bytes for any number of workers, documents as encoded, nothing left behind by a failure."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep import documents, preprocess
from megaswitch.data.prep.preprocess import Encoding, main
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError, MissingInputError


def contents(prefix):
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(preprocess, "read_lines", lambda paths: documents.read_lines(paths, 2000))


def test_workers_do_not_change_a_byte(model, write_jsonl, lines_of_text, tmp_path, small_chunks):
    path = write_jsonl([*lines_of_text[:7], "", *lines_of_text[8:]])
    for workers in (1, 3):
        encoding = Encoding(model, "text", "refuse")
        _, report = preprocess.preprocess([path, path], encoding, str(tmp_path / f"w{workers}"), workers)
        assert report.documents == 2 * 2999 and report.places == [f"{path}:8: empty document"] * 2
    assert contents(tmp_path / "w1") == contents(tmp_path / "w3")


def test_documents_are_as_encoded_without_eos(model, write_jsonl, lines_of_text, tmp_path):
    path = write_jsonl(lines_of_text[:50])
    assert (
        main(["--input", str(path), "--tokenizer", model, "--output", str(tmp_path / "deep" / "x"), "--workers", "1"])
        == 0
    )
    corpus, tokenizer = IndexedCorpus(tmp_path / "deep" / "x"), Tokenizer(model)
    assert [corpus.document(d).tolist() for d in range(50)] == tokenizer.encode_batch(list(lines_of_text[:50]))
    assert 1 not in corpus.tokens_T and corpus.dtype == "uint16"
    assert corpus.sidecar.tokenizer == tokenizer.facts and corpus.sidecar.sources == ["input.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_refusal_leaves_nothing_and_says_where(
    workers, model, write_jsonl, lines_of_text, tmp_path, capsys, small_chunks
):
    path = write_jsonl(lines_of_text)
    with path.open("ab") as file:
        file.write(b'{"text": "bad \xff byte"}\n')
    before = sorted(os.listdir(tmp_path))
    arguments = ["--input", str(path), "--tokenizer", model, "--output", str(tmp_path / "x"), "--workers", str(workers)]
    assert main(arguments) == 65
    assert sorted(os.listdir(tmp_path)) == before
    assert f"{path}:3001: invalid UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(("policy", "kept"), [("skip", 3), ("replace", 4)])
def test_policies_count_and_go_on(policy, kept, model, write_jsonl, tmp_path, capsys):
    path = write_jsonl(["one", "two", "three"])
    with path.open("ab") as file:
        file.write(b'{"text": "four \xff"}\n{"text": 5}\n')
    arguments = ["--input", str(path), "--tokenizer", model, "--output", str(tmp_path / "x"), "--workers", "1"]
    assert main([*arguments, "--on-bad", policy]) == 0
    corpus, err = IndexedCorpus(tmp_path / "x"), capsys.readouterr().err
    assert corpus.num_documents == kept
    assert "1 of kind: invalid UTF-8" in err and f"{path}:5: field 'text' is not a string" in err
    left_out = corpus.sidecar.options["left_out_or_repaired"]
    assert left_out == {"field 'text' is not a string": 1, "invalid UTF-8": 1}


@pytest.mark.parametrize("lines", [[], ["", "  "], ["\u200b"]])
def test_no_documents_is_an_error(lines, model, write_jsonl, tmp_path, capsys):
    path = write_jsonl(lines)
    arguments = ["--input", str(path), "--tokenizer", model, "--output", str(tmp_path / "x"), "--workers", "1"]
    assert main(arguments) == 65
    assert "no documents" in capsys.readouterr().err and os.listdir(tmp_path) == ["input.jsonl"]


def test_missing_files_and_bad_places(model, write_jsonl, tmp_path, capsys):
    path = str(write_jsonl(["one"]))
    assert main(["--input", "gone.jsonl", "--tokenizer", model, "--output", str(tmp_path / "x")]) == 66
    assert main(["--input", path, "--tokenizer", "gone.model", "--output", str(tmp_path / "x")]) == 66
    assert main(["--input", path, "--tokenizer", model, "--output", f"{path}/x"]) == 73
    assert main(["--input", path, "--tokenizer", path, "--output", str(tmp_path / "x")]) == 65
    with pytest.raises(SystemExit) as caught:
        main(["--input", path])
    assert caught.value.code == 64
    assert os.listdir(tmp_path) == ["input.jsonl"]


def test_a_worker_that_dies_is_told(model, write_jsonl, tmp_path, monkeypatch):
    class Dying(ProcessPoolExecutor):
        def submit(self, fn, /, *args):
            return super().submit(os._exit, 9)

    monkeypatch.setattr(preprocess, "ProcessPoolExecutor", Dying)
    path = write_jsonl(["one", "two"])
    with pytest.raises(DataError, match="worker process died"):
        preprocess.preprocess([path], Encoding(model, "text", "refuse"), str(tmp_path / "x"), 2)
    assert os.listdir(tmp_path) == ["input.jsonl"]


def test_interruption_leaves_nothing(model, write_jsonl, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess, "_write_all", interrupted)
    path = write_jsonl(["one", "two"])
    assert main(["--input", str(path), "--tokenizer", model, "--output", str(tmp_path / "x")]) == 130
    assert os.listdir(tmp_path) == ["input.jsonl"] and "interrupted" in capsys.readouterr().err


def test_missing_input_is_refused_before_anything_is_opened(model, tmp_path):
    with pytest.raises(MissingInputError):
        preprocess.preprocess([tmp_path / "gone.txt"], Encoding(model, "text", "skip"), str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []
