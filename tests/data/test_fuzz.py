"""Damaged files and arrays give an error or the right data. The long test runs a million of them under sanitizers."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from data.mutations import try_arrays, try_corpus, try_files, write_base
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import _native


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def base(folder):
    content = write_base(folder)
    assert try_corpus(str(folder / "base"), True) == try_corpus(str(folder / "base"), False) == ""
    return content


@given(seed=st.integers(0, 1 << 32))
def test_damaged_files(folder, base, seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        try_files(folder, base, rng)


@given(seed=st.integers(0, 1 << 32))
def test_damaged_arrays(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        try_arrays(_native, rng)


@given(seed=st.integers(0, 1 << 32), weights=st.lists(st.integers(1, 1 << 49), min_size=1, max_size=6))
def test_blends_in_states_that_no_schedule_reaches(seed, weights):
    rng = np.random.default_rng(seed)
    weights_K = np.array(weights, np.int64)
    owed_K, taken_K = (rng.integers(-(1 << 53), 1 << 53, weights_K.size) for _ in range(2))
    corpus_N, within_N = np.empty(50, np.int32), np.empty(50, np.int64)
    try:
        _native.blend_fill(weights_K, owed_K, taken_K, corpus_N, within_N)
    except RuntimeError as error:
        assert "no state" in str(error) or "not one" in str(error)
    else:
        assert corpus_N.min() >= 0 and corpus_N.max() < len(weights)


SHRINKS = """
import os, sys
from megaswitch.data.config import DataConfig
from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.opening import open_split
IndexedCorpus.check_unchanged = lambda self: None  # as if the file shrank just after it was looked at
settings = {"encoder_length": 64, "decoder_length": 14, "vocab_size": 1000, "seed": 0}
for packing in (False, True):
    dataset = open_split(DataConfig(train=sys.argv[1], split="1,0,0", packing=packing), "train", **settings)
    dataset.batch(0, 4)
    size = os.stat(sys.argv[1] + ".bin").st_size
    os.truncate(sys.argv[1] + ".bin", 0)
    try:
        dataset.batch(0, 64)
    except Exception as error:
        print(type(error).__name__, error)
    os.truncate(sys.argv[1] + ".bin", size)
os.kill(os.getpid(), 7)  # a fault that is not ours still ends the process
"""


def test_a_file_cut_short_while_it_is_read_is_an_error_not_a_signal(make_corpus, random_documents):
    prefix = make_corpus(random_documents(2000))
    command = [sys.executable, "-c", textwrap.dedent(SHRINKS), prefix]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    says = f"DataError a .bin was cut short while it was being read ({prefix})"
    assert len(lines) == 2 and all(line.startswith(says) for line in lines), done.stderr
    assert done.returncode == -7


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_a_million_mutations_under_sanitizers():
    command = [sys.executable, str(Path(__file__).parent / "fuzz.py"), "--count", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
