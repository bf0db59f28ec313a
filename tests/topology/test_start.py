"""Where a process stands, and the process group around a run."""

import pytest
import torch
import torch.distributed as dist

from megaswitch.topology.start import Place, cpu_group, find_place, process_group
from megaswitch.utils.errors import PeerLostError, UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_this_is_the_only_process():
    assert find_place("cpu") == Place(0, 1, 0, 1, torch.device("cpu"))


def test_torchruns_variables_are_read(monkeypatch):
    for name, value in zip(NAMES, ("5", "8", "1", "4"), strict=False):
        monkeypatch.setenv(name, value)
    assert find_place("cpu") == Place(rank=5, world=8, local_rank=1, local_world=4, device=torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES[:4])
@pytest.mark.parametrize("value", ["", "two", "1.0", "-1"])
def test_variables_that_are_no_numbers_are_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} is {value!r}.*torchrun") as caught:
        find_place("cpu")
    assert caught.value.exit_code == 64


def test_a_world_of_none_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "0")
    with pytest.raises(UserError, match="no whole number from 1"):
        find_place("cpu")


def test_a_port_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "http")
    with (
        pytest.raises(UserError, match="MASTER_PORT is 'http'"),
        process_group(Place(1, 2, 1, 2, torch.device("cpu")), 1.0),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert find_place("auto").device == torch.device("cpu")
    with pytest.raises(UserError, match=r"run\.device is cuda.*--run\.device=cpu"):
        find_place("cuda")


def test_alone_nothing_is_started():
    place = find_place("cpu")
    with process_group(place, 1.0):
        assert not dist.is_initialized()
        assert cpu_group(place, 1.0) is None


def test_missing_addresses_are_told():
    with (
        pytest.raises(PeerLostError, match="rank 1 of 2 could not meet the others at None:None"),
        process_group(Place(1, 2, 1, 2, torch.device("cpu")), 1.0),
    ):
        pass


def test_what_the_run_raises_itself_passes_unchanged():
    with pytest.raises(RuntimeError, match="of its own"), process_group(find_place("cpu"), 1.0):
        raise RuntimeError("of its own")
