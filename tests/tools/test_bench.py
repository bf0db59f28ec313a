"""The benchmarks of training at toy sizes: what they print is whole, whatever the times are."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from megaswitch.ops.ops import Ops
from megaswitch.utils.errors import UserError
from megaswitch.utils.malloc import keep_freed_memory

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """`bench("step", ...)` measures in this process, which is not pinned; what it printed: the table and the JSON."""
    monkeypatch.syspath_prepend(TOOLS)

    def measure(command, *arguments):
        parse = importlib.import_module("benches.command_line").parse
        arguments = [command, "--quick", "--peers-dir", str(tmp_path / "peers"), *arguments]
        importlib.import_module(f"benches.{command}").measure(parse(arguments, ""))
        *table, last = capsys.readouterr().out.splitlines()
        return "\n".join(table), json.loads(last)

    return measure


def check(told, unit):
    """Every figure is a positive number, low <= value <= high, and ratios are of rounds."""
    assert told["rows"] and {"cpu", "threads", "torch"} <= told["machine"].keys()
    for row in [told, *told["rows"]]:
        assert row["ours"]["unit"] == unit
        for name in ("ours", "peer", "ratio"):
            if row[name] is not None:
                low, value, high = (row[name][key] for key in ("low", "value", "high"))
                assert 0 < low <= value <= high and math.isfinite(high), (row["case"], name)
        assert (row["peer"] is None) == (row["ratio"] is None)


def test_help_and_wrong_usage():
    def run(*arguments):
        command = [sys.executable, str(TOOLS / "bench.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    done = run("--help")
    assert done.returncode == 0 and "python tools/bench.py step --experts 8" in done.stdout
    done = run("layer", "--help")
    assert done.returncode == 0 and "example:\n  python tools/bench.py layer" in done.stdout
    assert run().returncode == 64 and run("step", "--repeats", "0").returncode == 64
    assert "there is no key nonsense" in run("step", "--quick", "--key", "nonsense.key=1").stderr


def alone(*arguments):
    """As a user calls it, in a process of its own, which is pinned: the JSON that it printed."""
    command = [sys.executable, str(TOOLS / "bench.py"), *arguments, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_step_as_a_user_calls_it():
    told = alone("step", "--peer", "own-t5", "--optimizer", "adafactor")
    check(told, "tokens/s")
    assert told["peer"]["name"] == "our own T5 of equal FLOPs"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--dtype", "bfloat16"], "SwitchTransformers, bfloat16 by autocast"),
        (
            ["--dtype", "bfloat16", "--peer-precision", "bfloat16", "--peer-keeps-memory"],
            "SwitchTransformers, all bfloat16, freed memory kept",
        ),
        (["--peer", "hf-t5", "--dropout", "0.1"], "T5 of equal FLOPs"),
    ],
)
def test_step_beside_transformers(bench, arguments, name):
    """Both sides compute the same loss, or there are no figures."""
    table, told = bench("step", *arguments)
    check(told, "tokens/s")
    assert told["peer"]["name"] == f"transformers, {name}" and f"{name}, tokens/s" in table
    assert 0 <= told["dropped"] < 1


def test_a_precision_of_transformers_is_of_bfloat16(bench):
    for arguments in ([], ["--dtype", "bfloat16", "--peer", "own-t5"]):
        with pytest.raises(UserError, match="goes with --dtype bfloat16"):
            bench("step", "--peer-precision", "autocast", *arguments)


def test_other_weights_are_noticed(bench, monkeypatch):
    """A peer with other weights, and so another loss, is refused."""
    step = importlib.import_module("benches.step")
    plain = step.save_file
    monkeypatch.setattr(step, "save_file", lambda found, path: plain({k: v * 1.5 for k, v in found.items()}, path))
    with pytest.raises(AssertionError, match="ours has a loss of"):
        bench("step")


_FAULTS = """
from resource import RUSAGE_SELF, getrusage

def make(place):
    def faults():
        before = getrusage(RUSAGE_SELF).ru_minflt
        b"x" * 40_000_000
        return getrusage(RUSAGE_SELF).ru_minflt - before
    return faults
"""


def test_a_process_that_is_not_forked_has_its_own_malloc(monkeypatch, tmp_path):
    """It gets pages from the system anew each time, though this one keeps what was freed."""
    if not keep_freed_memory():
        pytest.skip("this C library has nothing to set")
    (tmp_path / "page_faults.py").write_text(_FAULTS)
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    crew = importlib.import_module("benches.crew").crew
    for fork in (True, False):
        with crew(1, importlib.import_module("page_faults").make, fork=fork) as one:
            for _ in range(4):
                one.once()
            assert (one.results[0] < 100) == fork


def test_what_ends_a_process_is_told(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    crew = importlib.import_module("benches.crew").crew
    with pytest.raises(RuntimeError, match="ZeroDivisionError"), crew(1, lambda place: 1 / 0) as one:
        one.once()

    def work(place):
        return lambda: os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match="memory enough"), crew(1, work) as one:
        one.once()


def test_layer_without_peers_says_so(bench, capsys):
    told = bench("layer")[1]
    check(told, "ms")
    assert told["peers"] == [] and told["peer"]["name"] == "Hugging Face" and "dense of equal FLOPs" in told["all"]
    told = bench("layer", "--procs", "2")[1]
    check(told, "ms")
    assert told["peer"] is None


def test_operations(bench):
    told = bench("ops")[1]
    assert {row["ours"]["unit"] for row in told["rows"]} == {"ms", "ns/parameter"}
    check({**told, "rows": [row for row in told["rows"] if row["ours"]["unit"] == told["ours"]["unit"]]},
          told["ours"]["unit"])


def test_every_operation_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    case = importlib.import_module("benches.operations.case")
    names = [p.stem for p in (TOOLS / "benches" / "operations").glob("[a-z]*.py") if p.stem != "case"]
    size = case.Size(quick=True, dtype=torch.float32)
    cases = [c for name in names for c in importlib.import_module(f"benches.operations.{name}").cases(size)]
    measured = {operation for c in cases for operation in c.uses}
    operations = {field.name for field in fields(Ops)} - {"name", "features_uniform"}
    operations -= {"states", "joint", "compiled"}  # which torch.compile alone replaces
    assert operations <= measured, "add it to operations/"


def test_profile(bench, tmp_path):
    table, told = bench("profile", "--dropout", "0.1", "--out", str(tmp_path))
    check(told, "s")
    shares = {part: entry["share"] for part, entry in told["parts"].items()}
    assert abs(sum(shares.values()) - 1) < 1e-9
    assert all(shares[part] > 0 for part in shares), "each part is found, forward or backward"
    assert shares["rest"] < 0.6 and "part:" in table
    host = told["rows"][0]["host"]
    assert host["launched"]["total"] == sum(host["launched"].values()) / 2 and host["launched"]["optimizer"] > 0
    assert host["reads"]["record"] == 1
    assert (tmp_path / "profile.svg").read_text().startswith("<?xml")


def test_scaling_counts_what_the_formulas_say(tmp_path):
    """In a process of its own, since it forks: this one may have used threads."""
    told = alone("scaling", "--out", str(tmp_path))
    check(told, "s")
    modes = {row["mode"]: row for row in told["rows"] if "mode" in row}
    assert set(modes) == {"tp", "pp", "ep", "dp"}
    assert all(row["counted_over_formula"] == 1.0 and row["megabytes"] > 0 for row in modes.values())
    plots = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert plots == ["scaling.svg", *(f"scaling_{kind}.svg" for kind in ("experts", "layers", "length"))]


def test_memory_is_what_the_dry_run_foretells(bench):
    told = bench("memory")[1]
    check(told, "MiB")
    assert {row["case"]: row for row in told["rows"]}["allocated"]["ratio"]["value"] == pytest.approx(1.0, abs=0.05)
