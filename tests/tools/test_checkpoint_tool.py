"""tools/checkpoint.py, run as a user runs it, on checkpoints that are whole, damaged and not there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megaswitch.checkpoint.format import Piece, step_name
from megaswitch.checkpoint.store import save
from megaswitch.params.boxes import Box

TOOL = Path(__file__).parents[2] / "tools" / "checkpoint.py"


def tool(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def checkpoint(tmp_path):
    tensor = torch.arange(12.0).reshape(3, 4)
    piece = Piece("weight/a", (3, 4), Box((0, 0), (3, 4)), tensor)
    return save(tmp_path, 7, [piece], {"config": {"model": {"preset": "switch_tiny"}}}, None)


def test_help_shows_an_example():
    done = tool("--help")
    assert done.returncode == 0 and "example:\n  python tools/checkpoint.py verify " in done.stdout


def test_inspect_lists_what_is_there(checkpoint):
    done = tool("inspect", checkpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 7\n") and "weight/a  float32  [3, 4]" in done.stdout
    assert "switch_tiny" in done.stdout


def test_verify_accepts_a_whole_checkpoint(checkpoint):
    done = tool("verify", checkpoint)
    assert done.returncode == 0, done.stderr
    assert f"{step_name(7)}: step 7, 1 tensors, 1 files" in done.stdout


def test_verify_names_the_damaged_file(checkpoint):
    shard = checkpoint / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # the size stays: only the hash can tell
    shard.write_bytes(content)
    assert tool("inspect", checkpoint).returncode == 0
    done = tool("verify", checkpoint)
    assert done.returncode == 65 and done.stderr.count("\n") == 1 and str(shard) in done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_folder_that_is_no_checkpoint(command, checkpoint, tmp_path):
    (checkpoint / "manifest.json").unlink()
    assert tool(command, checkpoint).returncode == 65
    assert tool(command, tmp_path / "nowhere").returncode == 66


def test_wrong_usage():
    assert tool("repair", "x").returncode == 64
    assert tool().returncode == 64
