"""What a start looks at: facts that must be the same, addresses, clocks, and the preflight that changes nothing."""

import ast
import contextlib
import io
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from faults.harness import assert_same, run, small_run, weights
from train.corpus import here

from megaswitch.topology.start import Place, process_group
from megaswitch.train.alike import on_first, refuse_unlike
from megaswitch.train.determinism import deterministic
from megaswitch.train.preflight_command import preflight
from megaswitch.utils.errors import CannotWriteError, PeerLostError, UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["torch", "data"])
def test_each_fact_names_the_odd_rank(world, name):
    def work():
        facts = {"python": "3.11", "torch": "2.13", "data": "abc"}
        if dist.get_rank() == 2:
            facts[name] = "another"
        try:
            refuse_unlike(facts, dist.group.WORLD)
        except UserError as error:
            return str(error)

    told = world(3, work)
    assert len(set(told)) == 1 and f"{name}: rank 2 has another, the others" in told[0]


def test_what_the_first_rank_cannot_do_is_known_to_all(world):
    def work():
        def fail():
            raise CannotWriteError("no room")

        try:
            on_first(dist.get_rank(), dist.group.WORLD, fail)
        except UserError as error:
            return error.exit_code, str(error), on_first(dist.get_rank(), dist.group.WORLD, lambda: 7)

    assert world(2, work) == [(73, "no room", 7), (73, "no room", None)]


def test_nothing_is_decided_by_the_clock_on_the_wall():
    """Only what is shown to people may read it: names, and how far clocks are apart."""
    allowed = {"train/preflight.py", "train/peers.py"}
    for path in (ROOT / "megaswitch").rglob("*.py"):
        calls = [ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        clocks = {"time.time", "time.strftime", "datetime.now", "datetime.datetime.now"} & set(calls)
        assert not clocks or path.relative_to(ROOT / "megaswitch").as_posix() in allowed, (path, clocks)


@pytest.mark.parametrize(("rank", "host"), [(0, "127.0.0.1"), (1, "127.0.0.1"), (1, "no-such-host.invalid")])
def test_who_cannot_be_met_is_told_with_the_address(world, rank, host):
    """A port that another program holds, which is no store and never answers; a name that nobody knows."""

    def work():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
            dist.destroy_process_group()  # the fixture's own
            try:
                with process_group(Place(rank, 2, rank, 2, torch.device("cpu")), 1.0):
                    return "met"
            except PeerLostError as error:
                return str(error).replace(port, "PORT")

    (said,) = world(1, work, limit=40.0)
    assert f"could not meet the others at {host}:PORT" in said and "address and port" in said


def test_what_listens_is_told():
    text = (ROOT / "SECURITY.md").read_text()
    assert "no authentication" in text and "firewall" in text
    assert "--standalone" in (ROOT / "launch" / "train.sh").read_text()


def test_a_run_with_a_preflight_is_the_run_without(tmp_path, corpus):
    found = []
    for wanted in (True, False):
        config = small_run(tmp_path / str(wanted), corpus, every=0, pp=2)
        codes, said = run(2, replace(config, run=replace(config.run, preflight=wanted)))
        assert codes == [0, 0] and ("mock batch: loss" in said) == wanted, said
        found.append(weights(config))
    assert_same(*found)


def test_preflight_prints_a_table_and_leaves_no_checkpoint(tmp_path, corpus, world):
    config = small_run(tmp_path, corpus, pp=2)

    def work():
        with contextlib.redirect_stdout(io.StringIO()) as out:
            return preflight(config, here()), out.getvalue()

    (code, first), (other, nothing) = world(2, work)
    assert (code, other, nothing) == (0, 0, "")
    for part in ("python ", "configuration ", "clocks ", "axis world of 2 ", "checkpoints ", "memory ", "two mock"):
        assert part in first
    assert not list(tmp_path.glob("checkpoints/*"))


def test_deterministic_mode_is_only_inside():
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_training_is_possible_with_deterministic_operations(tmp_path, corpus):
    config = small_run(tmp_path, corpus, every=0, ep=2)
    codes, said = run(2, replace(config, train=replace(config.train, deterministic=True, dtype="bfloat16")))
    assert codes == [0, 0], said
