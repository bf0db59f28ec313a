"""Many machines: the same bytes from processes here, from a Slurm array and from a Ray cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megaswitch.data.prep import plan as planning
from megaswitch.data.prep.preprocess_command import main

ROOT = Path(__file__).parents[2]

SBATCH = f"""#!{sys.executable}
# Does what sbatch, the scheduler and the nodes do, one task after another, as soon as it is asked.
import os, re, subprocess, sys
folder = os.path.dirname(os.path.abspath(__file__))
arguments = sys.argv[1:]
script = arguments[-1]
options = dict(a.lstrip("-").partition("=")[::2] for a in arguments[:-1])
assert "parsable" in options and os.path.isfile(script)
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(" ".join(arguments[:-1]) + "\\n")
if "dependency" in options:
    assert options["dependency"] == "afterok:41" and os.path.exists(os.path.join(folder, "ok"))
    done = [subprocess.run(["bash", script]).returncode]
else:
    tasks = range(*(int(n) + i for i, n in enumerate(options["array"].split("-"))))
    environments = [dict(os.environ, SLURM_ARRAY_TASK_ID=str(task)) for task in tasks]
    done = [subprocess.run(["bash", script], env=environment).returncode for environment in environments]
if not any(done):
    open(os.path.join(folder, "ok"), "w").close()
print("42;cluster" if "dependency" in options else "41;cluster")
"""


def contents(prefix):
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


@pytest.fixture
def run(model, write_jsonl, lines_of_text, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_SMALLEST", 20_000)
    path = write_jsonl(lines_of_text)

    def run(name, *options):
        prefix = tmp_path / name
        return main(["--input", str(path), "--tokenizer", model, "--output", str(prefix), *options]), prefix

    return run


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.timeout(300)
def test_a_slurm_array(run, sbatch, tmp_path, monkeypatch, capsys):
    assert run("here", "--workers", "1")[0] == 0
    options = ["--executor", "slurm", "--tasks", "3", "--workers", "2", "--sbatch=--partition=cpu --time=1:00"]
    code, prefix = run("there", *options)
    assert code == 0 and contents(prefix) == contents(tmp_path / "here")
    first, second = (sbatch / "calls").read_text().splitlines()
    assert "--partition=cpu --time=1:00" in first and "--array=0-2" in first
    assert "--kill-on-invalid-dep=yes" in second and not os.path.exists(f"{prefix}.parts")
    assert "in 3 tasks: job 41; joined by job 42" in capsys.readouterr().err


def test_without_slurm(run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert run("x", "--executor", "slurm")[0] == 64
    assert "sbatch is not on the PATH" in capsys.readouterr().err


def test_tasks_of_a_plan(run, sbatch, tmp_path, capsys):
    """By hand, without a scheduler: some tasks, a join that is too early, the others, the join."""
    (sbatch / "sbatch").write_text("#!/bin/sh\necho 7\n")
    assert run("x", "--executor", "slurm", "--tasks", "2")[0] == 0
    folder = str(tmp_path / "x.parts")
    assert main(["--plan", folder, "--shard", "1/2", "--workers", "1"]) == 0
    assert main(["--plan", folder, "--join"]) == 65
    assert main(["--plan", folder, "--shard", "2/2"]) == 64
    assert main(["--plan", folder, "--shard", "0/2", "--workers", "1"]) == 0
    assert main(["--plan", folder, "--join"]) == 0
    assert run("here", "--workers", "2")[0] == 0
    assert contents(tmp_path / "x") == contents(tmp_path / "here")
    assert main(["--plan", folder, "--join"]) == 66


def test_what_is_no_plan(tmp_path):
    (tmp_path / "plan.json").write_text('{"output": 5}')
    assert main(["--plan", str(tmp_path), "--join"]) == 65


def test_a_model_that_changed_since_the_plan(run, sbatch, model, tmp_path, capsys):
    (sbatch / "sbatch").write_text("#!/bin/sh\necho 7\n")
    copy = tmp_path / "copy.model"
    copy.write_bytes(Path(model).read_bytes())
    assert run("x", "--executor", "slurm", "--tokenizer", str(copy))[0] == 0
    copy.write_bytes(copy.read_bytes() + b"\x0a\x03\x0a\x01z")  # one more piece
    assert main(["--plan", str(tmp_path / "x.parts"), "--shard", "0/1", "--workers", "1"]) == 64
    assert "has changed since the plan was made" in capsys.readouterr().err


def test_standard_input_stays_here(model, tmp_path):
    for executor in ("slurm", "ray"):
        arguments = ["--input", "-", "--format", "text", "--tokenizer", model, "--output", str(tmp_path / "x")]
        assert main([*arguments, "--executor", executor]) == 64


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_ray_cluster_of_two_workers(run, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        assert run("here", "--workers", "1")[0] == 0
        code, prefix = run("there", "--executor", "ray", "--ray-address", cluster.address)
        assert code == 0 and contents(prefix) == contents(tmp_path / "here")
        (tmp_path / "input.jsonl").write_bytes((tmp_path / "input.jsonl").read_bytes() + b'{"text": 5}\n')
        assert run("bad", "--executor", "ray", "--ray-address", cluster.address)[0] == 65
        assert "input.jsonl:3001:" in capsys.readouterr().err
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_without_ray(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("x", "--executor", "ray")[0] == 64
    assert "megaswitch[ray]" in capsys.readouterr().err


def test_the_worker_command_is_a_module(tmp_path):
    """What the Slurm script runs, as it runs it."""
    command = [sys.executable, "-m", "megaswitch.data.prep.preprocess_command", "--plan", str(tmp_path), "--join"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 66 and "no plan at" in done.stderr
