"""The benchmark of the data side runs as a user calls it, on an input of some KB."""

import subprocess
import sys
from pathlib import Path

import orjson

from megaswitch.data.prep.train_tokenizer import TrainingOptions, train

ROOT = Path(__file__).parents[2]
SENTENCE = "the encoder reads tokens and the decoder writes what was masked, one span after another"
WORDS = SENTENCE.split()


def bench(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "bench_data.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_help_names_the_benchmarks():
    done = bench("--help")
    assert done.returncode == 0 and "python tools/bench_data.py preprocess" in done.stdout


def test_preprocessing_beside_sentencepiece(tmp_path):
    lines = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 12)) for i in range(500)]
    (tmp_path / "m.model").write_bytes(train(lines, TrainingOptions(34, character_coverage=1.0)))
    (tmp_path / "x.jsonl").write_bytes(b"".join(orjson.dumps({"text": line}) + b"\n" for line in lines))
    arguments = ["--input", str(tmp_path / "x.jsonl"), "--tokenizer", str(tmp_path / "m.model")]
    done = bench("preprocess", *arguments, "--workers", "2", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "preprocess.py has" in done.stdout and "of the rate of sentencepiece, arrays" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.model", "x.jsonl"]
