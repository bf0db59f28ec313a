"""Preprocessing: documents as encoded, the same bytes for any number of workers and however a run was broken off."""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import fsspec
import numpy as np
import orjson
import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep import plan as planning
from megaswitch.data.prep import preprocess
from megaswitch.data.prep.inputs import find
from megaswitch.data.prep.preprocess_command import main
from megaswitch.data.prep.sentences import split_sentences
from megaswitch.data.prep.verify import verify
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError, MissingInputError

ROOT = Path(__file__).parents[2]


def contents(prefix):
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(planning, "_SMALLEST", 20_000)


@pytest.fixture
def run(model, tmp_path):
    """Runs the command for an output in the test's folder; returns the code and the prefix."""

    def run(*inputs, name="x", options=(), workers=1):
        prefix = tmp_path / name
        arguments = ["--input", *map(str, inputs), "--tokenizer", model, "--output", str(prefix)]
        return main([*arguments, "--workers", str(workers), *options]), prefix

    return run


@pytest.mark.usefixtures("small_shards")
def test_workers_do_not_change_a_byte(model, write_jsonl, lines_of_text, run, tmp_path, capsys):
    path = write_jsonl([*lines_of_text[:7], "", *lines_of_text[8:]])
    for workers in (1, 3):
        assert run(path, path, name=f"w{workers}", workers=workers)[0] == 0
        err = capsys.readouterr().err
        assert "2 of kind: empty document" in err and err.count(f"{path}:8:") == 2
    assert contents(tmp_path / "w1") == contents(tmp_path / "w3")
    corpus, tokenizer = IndexedCorpus(tmp_path / "w3"), Tokenizer(model)
    texts = [*lines_of_text[:7], *lines_of_text[8:]]
    assert [corpus.document(d).tolist() for d in range(corpus.num_documents)] == tokenizer.encode_batch(texts * 2)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["input.jsonl", *(f"w{n}.{ending}" for n in (1, 3) for ending in ("bin", "idx", "json"))]
    )


def test_documents_are_as_encoded_without_eos(model, write_jsonl, lines_of_text, run):
    code, prefix = run(write_jsonl(lines_of_text[:50]), name="deep/x")
    corpus, tokenizer = IndexedCorpus(prefix), Tokenizer(model)
    assert code == 0
    assert [corpus.document(d).tolist() for d in range(50)] == tokenizer.encode_batch(list(lines_of_text[:50]))
    assert 1 not in corpus.tokens_T and corpus.dtype == "uint16"
    assert corpus.sidecar.tokenizer == tokenizer.facts and corpus.sidecar.sources == ["input.jsonl"]


def test_sentences_are_sequences_of_their_document(model, write_jsonl, run):
    texts = ["Open the file. Read every line!\nClose it.", "One sentence.", "\u200b. \u200b"]
    code, prefix = run(write_jsonl(texts), options=["--sentences"])
    corpus, tokenizer = IndexedCorpus(prefix), Tokenizer(model)
    pieces = [tokenizer.encode(sentence) for text in texts for sentence in split_sentences(text)]
    assert code == 0 and corpus.borders.tolist()[:3] == [0, 3, 4]
    assert corpus.lengths_Q.tolist() == [len(ids) for ids in pieces if ids]
    assert verify(str(prefix)).startswith(f"{prefix} is sound")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small_shards")
def test_refusal_says_where_and_keeps_what_is_done(workers, write_jsonl, lines_of_text, run, tmp_path, capsys):
    path = write_jsonl(lines_of_text)
    good = path.read_bytes()
    path.write_bytes(good + b'{"text": "bad \xff byte"}\n')
    assert run(path, workers=workers)[0] == 65
    assert f"{path}:3001:{len(good)}: invalid UTF-8" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["input.jsonl", "x.parts"]
    assert run(path, workers=workers, options=["--on-bad", "skip"])[0] == 0
    assert run(path, workers=workers, name="y", options=["--on-bad", "skip"])[0] == 0
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


@pytest.mark.parametrize(("policy", "kept"), [("skip", 3), ("replace", 4)])
def test_policies_count_and_go_on(policy, kept, write_jsonl, run, capsys):
    path = write_jsonl(["one", "two", "three"])
    with path.open("ab") as file:
        file.write(b'{"text": "four \xff"}\n{"text": 5}\n')
    code, prefix = run(path, options=["--on-bad", policy])
    corpus, err = IndexedCorpus(prefix), capsys.readouterr().err
    assert code == 0 and corpus.num_documents == kept
    assert "1 of kind: invalid UTF-8" in err and re.search(rf"{path}:5:\d+: field 'text' is not a string", err)
    left_out = corpus.sidecar.options["left_out_or_repaired"]
    assert left_out == {"field 'text' is not a string": 1, "invalid UTF-8": 1}


@pytest.mark.parametrize("lines", [[], ["", "  "], ["\u200b"]])
def test_no_documents_is_an_error(lines, write_jsonl, run, tmp_path, capsys):
    assert run(write_jsonl(lines))[0] == 65
    assert "no documents" in capsys.readouterr().err and os.listdir(tmp_path) == ["input.jsonl"]


def test_missing_files_and_bad_places(model, write_jsonl, run, tmp_path):
    path = str(write_jsonl(["one"]))
    assert run("gone.jsonl")[0] == 66
    assert main(["--input", path, "--tokenizer", "gone.model", "--output", str(tmp_path / "x")]) == 66
    assert main(["--input", path, "--tokenizer", model, "--output", f"{path}/x"]) == 73
    assert main(["--input", path, "--tokenizer", path, "--output", str(tmp_path / "x")]) == 65
    assert run(path, options=["--where", "nonsense"])[0] == 64
    for arguments in (["--input", path], ["--plan", "x"], ["--plan", "x", "--join", "--shard", "0/1"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 64
    assert os.listdir(tmp_path) == ["input.jsonl"]


def test_one_packed_file_on_two_threads(write_jsonl, lines_of_text, run, tmp_path):
    path = write_jsonl(lines_of_text)
    (tmp_path / "input.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name, source, workers in (("a", path, 1), ("b", f"{path}.gz", 2)):
        assert run(source, name=name, workers=workers)[0] == 0
    assert contents(tmp_path / "a")[:2] == contents(tmp_path / "b")[:2]
    (tmp_path / "input.jsonl.gz").write_bytes((tmp_path / "input.jsonl.gz").read_bytes()[:-9])
    assert run(f"{path}.gz", name="c", workers=2)[0] == 65


@pytest.mark.usefixtures("small_shards")
def test_addresses_and_folders_give_what_files_give(write_jsonl, lines_of_text, run, tmp_path):
    """Slices of a file behind an address, in two processes."""
    path = write_jsonl(lines_of_text)
    system = fsspec.filesystem("memory")
    system.pipe_file("/crawl/input.jsonl", path.read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "input.jsonl").write_bytes(path.read_bytes())
    try:
        assert run("memory://crawl/*.jsonl", name="far", workers=2)[0] == 0
    finally:
        system.rm("/crawl", recursive=True)
    assert run(tmp_path / "folder", name="near")[0] == 0
    assert contents(tmp_path / "far") == contents(tmp_path / "near")


def test_standard_input_and_paragraphs(model, lines_of_text, run, tmp_path):
    text = "\n\n".join(lines_of_text[:40]).encode()
    script = [sys.executable, str(ROOT / "data_prep" / "preprocess.py"), "--input", "-", "--format", "text"]
    options = ["--documents", "paragraph", "--tokenizer", model, "--output", str(tmp_path / "x")]
    subprocess.run([*script, *options], input=text, check=True, timeout=60)
    corpus = IndexedCorpus(tmp_path / "x")
    assert [corpus.document(d).tolist() for d in range(40)] == Tokenizer(model).encode_batch(list(lines_of_text[:40]))


@pytest.mark.parametrize("pieces", [65_399, 65_400])
def test_the_width_follows_from_the_vocabulary(pieces, monkeypatch, write_jsonl, run):
    """Ids below 65,500 take two bytes, more take four; the sentinels count."""
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda self: pieces + 100))
    code, prefix = run(write_jsonl(["one", "two"]))
    assert code == 0 and IndexedCorpus(prefix).dtype == (np.uint16 if pieces < 65_400 else np.int32)


@pytest.mark.usefixtures("small_shards")
def test_a_worker_that_dies_is_told(write_jsonl, lines_of_text, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preprocess, "write_shard", lambda *arguments: os._exit(9))
    assert run(write_jsonl(lines_of_text), workers=2)[0] == 65
    assert "worker process died" in capsys.readouterr().err and os.listdir(tmp_path) == ["input.jsonl"]


def test_another_run_on_the_same_output_is_refused(model, write_jsonl, run, tmp_path, monkeypatch, capsys):
    path = write_jsonl(["one", "two"])
    monkeypatch.setattr(preprocess, "_PATIENCE", 0.1)
    plan = planning.make_plan(find([str(path)]), planning.Reading(), model, str(tmp_path / "x"))
    with preprocess.at_work(plan):
        assert run(path)[0] == 73
    assert "another run is at work" in capsys.readouterr().err
    assert run(path)[0] == 0


@pytest.mark.usefixtures("small_shards")
def test_what_is_done_is_not_done_again_unless_it_changed(write_jsonl, lines_of_text, run, tmp_path, monkeypatch):
    path = write_jsonl(lines_of_text)
    done = []
    real = preprocess.write_shard

    def counting(plan, number, threads):
        if number == 3 and not done[3:]:
            raise KeyboardInterrupt
        done.append(number)
        return real(plan, number, threads)

    monkeypatch.setattr(preprocess, "write_shard", counting)
    assert run(path)[0] == 130 and done == [0, 1, 2]
    done.append(None)
    assert run(path)[0] == 0 and done[4] == 3 and not {0, 1, 2} & set(done[4:])
    whole = contents(tmp_path / "x")
    done[:] = []
    assert run(path)[0] == 130
    damaged = tmp_path / "x.parts" / "part-000001.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2])  # as after a power failure
    done.append(None)
    assert run(path)[0] == 0 and done[4] == 1 and contents(tmp_path / "x") == whole
    done[:] = []
    assert run(path)[0] == 130
    os.utime(path)  # the file may be another one now
    done.append(None)
    assert run(path)[0] == 0 and done[4:7] == [0, 1, 2] and contents(tmp_path / "x") == whole


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_shard_is_found_when_joining(write_jsonl, lines_of_text, run, tmp_path, monkeypatch, capsys):
    path = write_jsonl(lines_of_text)
    real = preprocess.join

    def damaging(plan):
        name = tmp_path / "x.parts" / "part-000002.bin"
        content = bytearray(name.read_bytes())
        content[5] ^= 1
        name.write_bytes(content)
        return real(plan)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "join", damaging)
        assert run(path)[0] == 65
    assert "part-000002.bin: its bytes are not those" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "x.idx")
    assert run(path)[0] == 0 and run(path, name="y")[0] == 0
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def killed(command, seconds):
    """Starts a command and ends it without a word after so many seconds; whether it was still running."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def write_many(path, lines_of_text, copies):
    with path.open("wb") as file:
        for number in range(copies):
            for text in lines_of_text:
                file.write(orjson.dumps({"text": f"{number} {text}"}) + b"\n")


def kills(model, lines_of_text, tmp_path, count, copies):
    path = tmp_path / "many.jsonl"
    write_many(path, lines_of_text, copies)
    code = (
        "import sys; from megaswitch.data.prep import plan; plan._SMALLEST = 200_000; "
        "from megaswitch.data.prep.preprocess_command import main; sys.exit(main())"
    )
    options = ["--input", str(path), "--tokenizer", model, "--workers", "2", "--output"]
    command = [sys.executable, "-c", code, *options]
    begin = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    taken = time.monotonic() - begin
    random, hit = Random(count), 0
    while hit < count:
        hit += killed([*command, str(tmp_path / "x")], random.uniform(0, taken))
        if os.path.exists(tmp_path / "x.idx"):  # whole, whenever it can be seen
            assert verify(str(tmp_path / "x")) and contents(tmp_path / "x") == contents(tmp_path / "whole")
            for ending in ("bin", "idx", "json"):
                os.remove(tmp_path / f"x.{ending}")
        else:
            with pytest.raises(MissingInputError):
                IndexedCorpus(tmp_path / "x")
        for part in (tmp_path / "x.parts").glob("part-*.idx"):
            IndexedCorpus(part.with_suffix(""))  # what a reader accepts of the shards is whole too
    subprocess.run([*command, str(tmp_path / "x")], check=True)
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["many.jsonl", *(f"{name}.{ending}" for name in ("whole", "x") for ending in ("bin", "idx", "json"))]
    )


def test_killed_at_any_moment_it_goes_on(model, lines_of_text, tmp_path):
    kills(model, lines_of_text, tmp_path, count=4, copies=8)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_twenty_kills(model, lines_of_text, tmp_path):
    kills(model, lines_of_text, tmp_path, count=20, copies=40)


def test_a_long_line_takes_little_memory(model, tmp_path):
    """11 MB on one line, documents of one word beside it: far less memory than encoding it at once, or holding all."""
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.write(orjson.dumps({"text": "the value of the list " * 500_000}) + b"\n")
        file.write(b'{"text": "word"}\n' * 100_000)
    code = """
import resource, sys
from megaswitch.data.prep.preprocess_command import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main() == 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    options = ["--input", str(tmp_path / "x.jsonl"), "--tokenizer", model, "--output", str(tmp_path / "x")]
    command = [sys.executable, "-c", code, *options, "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert IndexedCorpus(tmp_path / "x").num_documents == 100_001 and float(done.stdout) < 200


def test_missing_input_is_refused_before_anything_is_opened(run, tmp_path):
    assert run(tmp_path / "gone.txt")[0] == 66
    assert os.listdir(tmp_path) == []


def test_a_plan_that_is_not_done_is_not_joined(model, write_jsonl, tmp_path):
    plan = planning.make_plan(
        find([str(write_jsonl(["one"]))]), planning.Reading(), model, str(tmp_path / "x")
    )
    with pytest.raises(DataError, match="is not done"):
        preprocess.join(plan)
