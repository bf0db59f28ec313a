"""Saving beside the training: what is written is the state of the step, one save at a time, and failures are told."""

import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from megaswitch.checkpoint import saver as saver_module
from megaswitch.checkpoint import staging
from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.config import CheckpointConfig
from megaswitch.checkpoint.disk import DiskFolder
from megaswitch.checkpoint.format import Piece
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.saver import Saver
from megaswitch.checkpoint.staging import Staging, spare_memory
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import CannotWriteError, StorageError

CONFIG = CheckpointConfig(keep=2)


def piece(x):
    return [Piece("x", tuple(x.shape), Box((0,) * x.dim(), tuple(x.shape)), x)]


class Gate:
    """Holds every save in front of its first write until it is opened."""

    def __init__(self, monkeypatch):
        self.opened, self.reached, save = threading.Event(), threading.Event(), saver_module.save
        self.running = self.most = 0

        def held(*arguments):
            self.running += 1
            self.most = max(self.most, self.running)
            self.reached.set()
            assert self.opened.wait(30)
            try:
                return save(*arguments)
            finally:
                self.running -= 1

        monkeypatch.setattr(saver_module, "save", held)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def test_training_goes_on_and_the_state_of_the_step_is_written(tmp_path, gate):
    x, saver = torch.arange(6.0), Saver(tmp_path, CONFIG, None)
    saver.save(1, piece(x), {"samples": 4})
    assert gate.reached.wait(30)
    x += 100  # the next steps, while nothing is written yet
    saver.poll()
    assert committed(tmp_path) == []
    gate.opened.set()
    saver.settle()
    reader = Reader(tmp_path / "step-00000001")
    assert reader.state == {"samples": 4}
    assert torch.equal(reader.read_all("x"), torch.arange(6.0))


def test_never_two_at_once(tmp_path, gate, caplog):
    x, saver = torch.zeros(3), Saver(tmp_path, replace(CONFIG, keep=0), None)
    saver.save(1, piece(x), {})
    threading.Timer(0.2, gate.opened.set).start()
    for step in (2, 3, 4):
        saver.save(step, piece(x + step), {})
    saver.save_last(5, piece(x + 5), {})
    assert gate.most == 1
    assert "training waits for the checkpoint before" in caplog.text
    assert [Reader(p).step for p in committed(tmp_path)] == [5, 4, 3, 2, 1]
    assert torch.equal(Reader(tmp_path / "step-00000003").read_all("x"), x + 3)


def test_synchronous_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(Staging, "take", lambda self, pieces: pytest.fail("no copy is needed"))
    Saver(tmp_path, replace(CONFIG, asynchronous=False), None).save(1, piece(torch.ones(2)), {})
    assert Reader(tmp_path / "step-00000001").step == 1


def test_without_memory_for_a_copy_training_waits(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(staging, "spare_memory", lambda: 100)
    saver = Saver(tmp_path, CONFIG, None, local_world=2)
    saver.save(1, piece(torch.ones(6)), {})  # 24 of the 25 bytes that this process may take
    saver.settle()
    assert "no memory" not in caplog.text
    saver.save(2, piece(torch.ones(7)), {})
    assert "step 2: no memory" in caplog.text
    assert committed(tmp_path)[0].name == "step-00000002"  # nothing was waited for


def test_spare_memory_is_that_of_a_machine():
    assert 0 < spare_memory() < 1 << 50


def test_the_memory_of_copies_is_used_again():
    stage, x = Staging(), torch.arange(4.0)
    (first,) = stage.take(piece(x))
    assert first.tensor.data_ptr() != x.data_ptr()
    (second,) = stage.take(piece(x * 2))
    assert second.tensor.data_ptr() == first.tensor.data_ptr()
    assert torch.equal(second.tensor, x * 2)
    (other,) = stage.take(piece(torch.zeros(5)))
    assert other.tensor.shape == (5,)


def test_a_failure_is_told_at_the_next_step_and_training_goes_on(tmp_path, monkeypatch, caplog):
    saver = Saver(tmp_path, CONFIG, None)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
        saver.save(1, piece(torch.ones(3)), {})
        while saver._thread is not None:
            saver.poll()
        assert "checkpoint of step 1 failed, training goes on: the checkpoint of step 1 needs 12 bytes" in caplog.text
        with pytest.raises(CannotWriteError, match="step 2 needs 12 bytes, 10 bytes are free"):
            saver.save_last(2, piece(torch.ones(3)), {})
    saver.save_last(3, piece(torch.ones(3)), {})
    assert [p.name for p in committed(tmp_path)] == ["step-00000003"]


def test_old_ones_go_only_when_the_new_one_is_read_back_whole(tmp_path, monkeypatch, caplog):
    saver = Saver(tmp_path, CONFIG, None)
    for step in (1, 2, 3):
        saver.save_last(step, piece(torch.ones(3) * step), {})
    assert [p.name[-1] for p in committed(tmp_path)] == ["3", "2"]
    settle = DiskFolder.settle

    def bad_disk(self):
        settle(self)
        for shard in self._path.glob("step-00000004/shard*"):
            shard.write_bytes(shard.read_bytes()[:-1] + b"\7")

    monkeypatch.setattr(DiskFolder, "settle", bad_disk)
    saver.save_last(4, piece(torch.ones(3)), {})
    assert "no checkpoint is removed" in caplog.text and "does not hold what was written" in caplog.text
    assert len(committed(tmp_path)) == 3


def test_in_a_hurry_nothing_is_removed(tmp_path):
    saver = Saver(tmp_path, replace(CONFIG, keep=1), None)
    for step in (1, 2):
        saver.save_last(step, piece(torch.ones(1)), {}, hurry=step == 2)
    assert len(committed(tmp_path)) == 2


def test_many_ranks_save_while_they_train(world, tmp_path):
    """The threads of all ranks talk to each other while their ranks talk among themselves, in another order."""

    def work():
        rank, group = dist.get_rank(), dist.new_group(backend="gloo")
        saver, x = Saver(tmp_path, replace(CONFIG, every=1), group), torch.full((2, 3), float(rank))
        for step in range(1, 9):
            for _ in range(10):
                dist.all_reduce(torch.ones(100))
            x += 1
            saver.poll()
            saver.save(step, [Piece("x", (6, 3), Box((2 * rank, 0), (2, 3)), x)], {"samples": step})
        saver.save_last(9, [Piece("x", (6, 3), Box((2 * rank, 0), (2, 3)), x + 1)], {})

    world(3, work)
    assert [Reader(p).step for p in committed(tmp_path)] == [9, 8]
    expected = torch.tensor([0.0, 0, 1, 1, 2, 2]).unsqueeze(1).expand(6, 3)
    assert torch.equal(Reader(tmp_path / "step-00000008").read_all("x"), expected + 8)


def test_a_peer_that_dies_in_a_save_is_an_error_of_the_run(world, tmp_path):
    def work():
        saver = Saver(tmp_path, CONFIG, dist.new_group(backend="gloo"))
        dist.barrier()  # the other one is connected
        if dist.get_rank() == 1:
            return ""  # and the process ends
        saver.save(1, piece(torch.ones(3)), {})
        try:
            saver.settle()
        except RuntimeError as error:
            return type(error).__name__
        return "nothing"

    assert world(2, work)[0] != "nothing"


def test_trouble_that_passes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("megaswitch.checkpoint.store._PAUSES", (0.0, 0.0))
    left, write = [2], saver_module.save.__globals__["write_shard"]

    def flaky(path, tensors):
        info = write(path, tensors)
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return info

    monkeypatch.setattr("megaswitch.checkpoint.store.write_shard", flaky)
    Saver(tmp_path, CONFIG, None).save_last(1, piece(torch.ones(3)), {})
    assert caplog.text.count("once more") == 2
    left[0] = 3
    with pytest.raises(StorageError, match="Input/output error") as caught:
        Saver(tmp_path, CONFIG, None).save_last(2, piece(torch.ones(3)), {})
    assert caught.value.exit_code == 74
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
