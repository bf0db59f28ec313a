"""Indexes: the compiled twin, kept once, never half written, never believed when they are of something else."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.data import index
from megaswitch.data.config import DataConfig
from megaswitch.data.index import IndexStore, epoch_order
from megaswitch.data.opening import open_split
from megaswitch.data.prep.build_index import main
from megaswitch.data.rng import permutation

LENGTHS = {"encoder_length": 64, "decoder_length": 14}


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200), st.integers(0, (1 << 64) - 1))
def test_the_twin_orders_the_same(lengths, key):
    lengths_N = np.array(lengths, np.int64)
    order_N, ends_N = epoch_order(lengths_N, key)
    np.testing.assert_array_equal(order_N, permutation(lengths_N.size, key))
    np.testing.assert_array_equal(ends_N, np.cumsum(lengths_N[order_N]))


def count_builds(store, facts, arrays, keep=True):
    built = []

    def build():
        built.append(1)
        return arrays

    found = store.arrays(facts, build, 5, keep=keep)
    for ours, theirs in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return len(built)


ARRAYS = [np.arange(5), np.empty(0, np.int64), np.arange(7) * (1 << 40)]


def test_kept_once_and_then_mapped(tmp_path):
    assert count_builds(IndexStore(tmp_path / "i"), ("a", 1), ARRAYS) == 1
    assert count_builds(IndexStore(tmp_path / "i"), ("a", 1), ARRAYS, keep=False) == 0
    assert count_builds(IndexStore(tmp_path / "i"), ("a", 2), ARRAYS) == 1
    assert not list(tmp_path.glob("i/*.tmp-*"))


def test_small_ones_stay_in_memory(tmp_path):
    assert count_builds(IndexStore(tmp_path / "i"), ("a",), ARRAYS, keep=False) == 1
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("damage", ["truncated", "other shape", "gone", "empty", "garbage"])
def test_damaged_files_are_built_again(tmp_path, damage):
    store = IndexStore(tmp_path)
    count_builds(store, ("a",), ARRAYS)
    path = next(tmp_path.glob("*.3.npy"))
    if damage == "other shape":
        np.save(path, np.arange(3))
    elif damage == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"truncated": content[:-9], "empty": b"", "garbage": b"\x93NUMPY garbage"}[damage])
    assert count_builds(store, ("a",), ARRAYS) == 1
    assert count_builds(store, ("a",), ARRAYS) == 0


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = IndexStore(tmp_path / "file" / "index")
    assert count_builds(store, ("a",), ARRAYS) == 1 and count_builds(store, ("b",), ARRAYS) == 1
    assert caplog.text.count("set data.index_dir") == 1


def _build_slowly(folder, log):
    def build():
        with Path(log).open("a") as file:
            file.write("x")
        return ARRAYS

    found = IndexStore(Path(folder)).arrays(("a",), build, 5, keep=True)
    assert [array.tolist() for array in found] == [array.tolist() for array in ARRAYS]


def test_once_a_node(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "index"), str(tmp_path / "log"))
    workers = [context.Process(target=_build_slowly, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4 and (tmp_path / "log").read_text() == "x"


@pytest.mark.parametrize("packing", [False, True])
def test_samples_are_the_same_with_kept_indexes(packing, tmp_path, make_corpus, random_documents, monkeypatch):
    prefix = make_corpus(random_documents(80))
    config = DataConfig(train=prefix, packing=packing, index_dir=str(tmp_path / "index"))
    plain = DataConfig(train=prefix, packing=packing)
    wanted = open_split(plain, "train", vocab_size=1000, seed=4, **LENGTHS).batch(0, 90)
    monkeypatch.setattr(index, "KEPT_FROM", 1)
    for _ in range(2):
        found = open_split(config, "train", vocab_size=1000, seed=4, **LENGTHS).batch(0, 90)
        for ours, theirs in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not Path(f"{prefix}.index").exists() and any((tmp_path / "index").iterdir())


def test_built_ahead(tmp_path, make_corpus, random_documents, capsys, monkeypatch):
    prefix = make_corpus(random_documents(80))
    model = ["--model.encoder_length=64", "--model.decoder_length=14", "--model.vocab_size=1000"]
    keys = [f"--data.train={prefix}", *model]
    assert main(["--epochs", "2", *keys, f"--data.index_dir={tmp_path}/index", "--data.split=0.8,0.2,0"]) == 0
    assert "train: 1 corpora" in capsys.readouterr().err
    monkeypatch.setattr(index, "epoch_order", None)  # nothing is left to build
    monkeypatch.setattr("megaswitch.data.stream.epoch_order", None)
    config = DataConfig(train=prefix, index_dir=f"{tmp_path}/index", split="0.8,0.2,0")
    dataset = open_split(config, "train", vocab_size=1000, seed=0, **LENGTHS)
    dataset.batch(0, dataset.num_samples + 3)
    assert main(["--data.train="]) == 66
    assert main(["--data.trian=x"]) == 64
