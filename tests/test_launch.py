"""What is shipped in launch/: configurations that fit the world they name and hold the published number of parameters,
and scripts that a shell can read."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.model.units import param_specs
from megaswitch.params.derive import count
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig

LAUNCH = Path(__file__).parents[1] / "launch"
CONFIGS = sorted(LAUNCH.glob("configs/*.toml"))
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), LAUNCH.parent / "tests" / "run.sh"])
PUBLISHED = {
    **{f"switch_base_{n}": f"Switch-Base-{n}(relu3072 tied 1/2)" for n in (8, 16, 32, 64, 128, 256)},
    "switch_large_128": "Switch-Large-128(relu4096 tied 1/2)",
    "switch_xxl_128": "Switch-XXL-128(geglu10240 untied 1/2)",
    "switch_c_2048": "Switch-C-2048(relu6144 H30 untied)",
}
WORLD = re.compile(r"# World: (\d+) processes\.")


def name(path):
    return path.name


def read(path, *arguments):
    return load(RunConfig, presets(), ["--config", str(path), *arguments], "test", "")


def stated_runs(path):
    """World and further arguments of each run that a configuration is meant for: as its first line says, or as
    launch/quickstart.sh starts them."""
    first = path.read_text().splitlines()[0]
    if match := WORLD.fullmatch(first):
        return [(int(match[1]), [])]
    assert path.name == "quickstart.toml", f"{path.name} does not begin with # World: N processes."
    script = (LAUNCH / "quickstart.sh").read_text()
    starts = re.findall(r"^train (\d+) (--layout.*)$", script, re.M)
    assert len(starts) == 2
    return [(int(n), [a for a in shlex.split(rest) if a.startswith("--layout.")]) for n, rest in starts]


def shell(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


def test_configurations_are_there():
    assert len(CONFIGS) >= 5


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_configuration_fits_its_world(path):
    for world, arguments in stated_runs(path):
        assert check(read(path, *arguments), world) == []


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_configuration_does_not_fit_another_world(path):
    """So that the test above could fail: three times the processes divide no global batch here."""
    for world, arguments in stated_runs(path):
        assert check(read(path, *arguments), 3 * world)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.name != "quickstart.toml"], ids=name)
def test_configuration_is_the_published_model(path, golden):
    config = read(path)
    assert config.model.preset == path.stem and config.train.global_batch == 2048
    assert config.run_dir == f"runs/{path.stem}"
    published = golden("param_counts.json")[PUBLISHED[config.model.preset]]
    assert count(param_specs(config.model).values())["total"] == published["total"]


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_script_is_bash(path):
    done = shell("bash", "-n", str(path))
    assert done.returncode == 0 and not done.stderr


def test_train_says_what_it_takes():
    done = shell("bash", str(LAUNCH / "train.sh"), "--help")
    assert done.returncode == 0
    variables = re.findall(r"^  ([A-Z_]{4,}) ", done.stdout, re.M)
    assert {"NPROC", "NODE_RANK", "MASTER_ADDR", "RDZV_ENDPOINT", "LOCAL_ADDR", "STOP_SECONDS"} < set(variables)
    for variable in variables:
        assert f"`{variable}`" in (LAUNCH / "README.md").read_text()


@pytest.mark.parametrize(
    "environment,expected",
    [
        ({"NPROC": "3"}, "--nnodes 1 --nproc-per-node 3 --standalone"),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}, "--node-rank 1 --master-addr a --master-port 29500"),
        ({"NNODES": "2", "RDZV_ENDPOINT": "a:1"}, "--rdzv-backend c10d --rdzv-endpoint a:1 --rdzv-id megaswitch"),
        (
            {"NNODES": "2", "RDZV_ENDPOINT": "a:1", "RDZV_ID": "x", "LOCAL_ADDR": "10.0.0.2", "JOIN_SECONDS": "9"},
            "--rdzv-id x --rdzv-conf join_timeout=9 --local-addr 10.0.0.2 --max-restarts",
        ),
        (
            {"NNODES": "2", "RDZV_ENDPOINT": "10.0.0.2:1", "LOCAL_ADDR": "10.0.0.2"},
            "--rdzv-conf join_timeout=600,is_host=1 --local-addr 10.0.0.2 --max-restarts",
        ),
    ],
)
def test_train_passes_on_where_it_runs(tmp_path, environment, expected):
    """train.sh with a python3 that writes down what it was asked for."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "train.sh").write_text((LAUNCH / "train.sh").read_text())
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE $*"\n')
    (tmp_path / "python3").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NPROC": "1", **environment}
    done = shell("bash", str(tmp_path / "launch" / "train.sh"), "--train.steps=3", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 -m torch.distributed.run ") and expected in done.stdout
    assert done.stdout.endswith("-m megaswitch train --train.steps=3\n") and "SIGUSR1" in done.stdout


def test_train_needs_to_know_which_node_it_is(tmp_path):
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NPROC": "1", "NNODES": "2"}
    done = shell("bash", str(LAUNCH / "train.sh"), env=environment)
    assert done.returncode != 0 and "number of this node" in done.stderr


def test_train_refuses_restarts_that_would_look_for_the_dead():
    environment = {**os.environ, "NPROC": "1", "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "a", "MAX_RESTARTS": "1"}
    done = shell("bash", str(LAUNCH / "train.sh"), env=environment)
    assert done.returncode == 64 and "MAX_RESTARTS needs RDZV_ENDPOINT" in done.stderr
