"""Which checkpoints stay: the last, every n-th, the best, and never fewer than there are good ones."""

import pytest
import torch

from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.format import Piece
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.retention import prune, removable
from megaswitch.checkpoint.store import save
from megaswitch.params.boxes import Box

SHARD = "shard-00000.safetensors"


def write(root, step, nll=None):
    state = {} if nll is None else {"validation_nll": nll}
    return save(root, step, [Piece("n", (), Box((), ()), torch.tensor(step))], state, None)


@pytest.fixture
def root(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    return tmp_path


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_prune_keeps_the_newest(root):
    prune(root, 0)
    assert len(names(root)) == 3
    prune(root, 2)
    assert names(root) == ["step-00000002", "step-00000003"]
    prune(root, 5)
    assert names(root) == ["step-00000002", "step-00000003"]


def test_prune_touches_only_what_is_ours(root):
    kept = ["notes", "step-1", "step-00000001.bak", "step-00000001.tmp-x", "step-00000004.tmp-" + "0" * 32]
    for name in kept:
        (root / name).mkdir()
    (root / ("step-00000002.tmp-" + "a" * 32)).mkdir()
    prune(root, 1)
    assert names(root) == sorted(["step-00000003", *kept])


def test_prune_removes_nothing_while_the_newest_is_damaged(root):
    (root / "step-00000003" / SHARD).unlink()
    prune(root, 1)
    assert len(names(root)) == 3


def test_prune_does_not_count_damaged_ones(root):
    (root / "step-00000002" / SHARD).unlink()
    prune(root, 2)
    assert len(names(root)) == 3


def steps(root):
    return [Reader(path).step for path in reversed(committed(root))]


def test_every_nth_stays(tmp_path):
    for step in range(1, 10):
        write(tmp_path, step)
        prune(tmp_path, 2, keep_every=4)
    assert steps(tmp_path) == [4, 8, 9]


def test_the_best_stay(tmp_path):
    for step, nll in enumerate([5.0, 3.0, 4.0, 3.5, None, 3.2, 6.0, 3.0, 7.0, 8.0], start=1):
        write(tmp_path, step, nll)
        prune(tmp_path, 1, keep_best=2)
    assert steps(tmp_path) == [2, 8, 10]


def test_all_three_at_once(tmp_path):
    for step in range(1, 8):
        write(tmp_path, step, 10.0 if step != 2 else 1.0)
        prune(tmp_path, 1, keep_every=3, keep_best=1)
    assert steps(tmp_path) == [2, 3, 6, 7]


def test_what_may_be_removed_is_told_without_removing(root):
    assert [removable(root, keep) for keep in (0, 1, 2, 3, 4)] == [False, True, True, False, False]
    assert len(names(root)) == 3


def test_damaged_ones_are_no_reason_to_remove(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / SHARD).unlink()
    prune(tmp_path, 2)
    assert len(names(tmp_path)) == 3


def test_as_many_damaged_ones_stay_aside_as_good_ones_are_kept(root):
    for step in range(4, 9):
        (root / f"step-{step:08d}.bad-{step:032x}").mkdir()
    prune(root, 2)
    assert names(root) == ["step-00000002", "step-00000003", *(f"step-{s:08d}.bad-{s:032x}" for s in (7, 8))]
