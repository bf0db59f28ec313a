"""The `megaswitch` command as users start it: a process, its output and its exit code."""

import json
import os
import subprocess
import sys

import pytest

from megaswitch.cli import COMMANDS
from megaswitch.model.presets import presets
from megaswitch.train.config import RunConfig

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from megaswitch.cli import main; sys.exit(main())"
"""What would import torch fails with ImportError."""


def start(*argv: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, *argv]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)


def megaswitch(*argv: str) -> subprocess.CompletedProcess:
    return start("-m", "megaswitch", *argv)


def without_torch(*argv: str) -> subprocess.CompletedProcess:
    return start("-c", WITHOUT_TORCH, *argv)


@pytest.mark.parametrize("ask", ["--help", "-h"])
def test_help_names_every_command(ask):
    done = without_torch(ask)
    assert done.returncode == 0 and done.stderr == ""
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_help_of_training_names_every_key():
    done = without_torch("train", "--help")
    assert done.returncode == 0 and done.stderr == ""
    config = RunConfig()
    for section in vars(config):
        for key in vars(getattr(config, section)):
            assert f"--{section}.{key}" in done.stdout


def test_no_command_and_an_unknown_one():
    done = without_torch()
    assert done.returncode == 64 and "usage: megaswitch" in done.stdout
    done = without_torch("trian")
    assert done.returncode == 64 and done.stdout == ""
    assert done.stderr.startswith('megaswitch: there is no command "trian"')
    assert all(command in done.stderr for command in COMMANDS)


@pytest.mark.parametrize("command", ["train", "eval", "check-config"])
def test_a_misspelt_key_names_the_nearest_one(command):
    done = without_torch(command, "--model.num_expert=8", "--layout.pt=2")
    assert done.returncode == 64 and done.stdout == ""
    assert "there is no key model.num_expert; did you mean model.num_experts?" in done.stderr
    assert "there is no key layout.pt" in done.stderr, "all are told at once"
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there():
    done = without_torch("train", "--config", "nowhere.toml")
    assert done.returncode == 66
    assert done.stderr.count("\n") == 1 and "nowhere.toml" in done.stderr


def test_info_counts_as_published(golden):
    done = megaswitch("info", "switch_base_8", "--json")
    assert done.returncode == 0 and done.stderr == ""
    facts = json.loads(done.stdout)
    published = golden("param_counts.json")["Switch-Base-8(relu3072 tied 1/2)"]
    assert facts["parameters"]["total"] == published["total"]
    assert facts["parameters"]["by_part"] == {part: published[part] for part in facts["parameters"]["by_part"]}
    assert sum(facts["parameters"]["by_part"].values()) == published["total"]
    assert facts["parameters"]["active"] == published["active"]
    assert facts["flops_per_sequence"] == pytest.approx(124.6e9, rel=1e-3)
    assert "published" not in facts, "the paper prints no figures of it"


def test_info_shows_the_papers_figures_beside():
    done = megaswitch("info", "switch_xxl_64_as_printed")
    assert done.returncode == 0 and done.stderr == ""
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in done.stdout.splitlines()}
    assert lines["total"] == "total 201,395,253,248 paper: 395B (table 9)"
    assert lines["active"] == "active 11,141,623,808"
    assert lines["forward FLOPs"] == "forward FLOPs 6.26e+12 paper: 6.3T (table 9)"
    done = megaswitch("info", "switch_base_16", "--json")
    published = {"parameters": 1.1e9, "flops_per_sequence": None, "source": "table 7"}
    assert json.loads(done.stdout)["published"] == published


def test_info_of_the_operations():
    done = megaswitch("info", "ops", "--json")
    found = json.loads(done.stdout)
    assert found["reference"] == {"available": True, "reason": ""}
    assert found["cpp"] == {"available": True, "reason": ""}, "the installation builds the kernels"
    assert "reference   available" in megaswitch("info", "ops").stdout


def test_info_of_what_is_no_preset():
    done = megaswitch("info", "switch_base_9")
    assert done.returncode == 64 and done.stdout == ""
    assert "switch_base_9" in done.stderr and "switch_base_8" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_of_info_names_every_preset():
    done = without_torch("info", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout.replace("\n", " ") for name in presets())


@pytest.mark.parametrize("wrong", [(), ("switch_base_8", "--jsn"), ("switch_base_8", "t5_base"), ("switch_base_9",)])
def test_wrong_usage_of_info(wrong):
    done = without_torch("info", *wrong)
    assert done.returncode == 64 and done.stdout == ""
    assert done.stderr.startswith("megaswitch: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["many", "0", "-1", "1.5", ""])
def test_a_world_size_that_is_no_number(size):
    environment = {**os.environ, "WORLD_SIZE": size}
    command = [sys.executable, "-c", WITHOUT_TORCH, "check-config", "--model.preset=switch_tiny"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 64
    assert f"WORLD_SIZE is {size!r}" in done.stderr and "Traceback" not in done.stderr


def test_check_config_tells_all_problems():
    wrong = ["--layout.pp=8", "--layout.tp=3", "--layout.ep=3", "--model.decoder_length=13", "--train.micro_batch=3"]
    done = megaswitch("check-config", "--model.preset=switch_tiny", *wrong, "--world", "24")
    assert done.returncode == 64 and done.stdout == ""
    for key in ("layout.pp", "layout.tp", "layout.ep", "model.decoder_length", "train.global_batch"):
        assert f"\n  - {key}" in done.stderr, key
    assert "Traceback" not in done.stderr


def test_check_config_that_works():
    done = megaswitch("check-config", "--world=8", "--model.preset=switch_tiny", "--layout.tp=2", "--layout.pp=2")
    assert (done.returncode, done.stdout) == (0, "the configuration works with 8 process(es)\n")


@pytest.mark.parametrize("world", [["--world"], ["--world", "many"], ["--world=-1"], ["--world=0"]])
def test_check_config_wants_a_number_of_processes(world):
    done = without_torch("check-config", *world)
    assert done.returncode == 64
    assert "--world wants the number of processes" in done.stderr
