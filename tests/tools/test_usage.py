"""Wrong usage ends every command with 64 and a message, whoever reads its arguments."""

import subprocess
import sys
from pathlib import Path

import pytest

from megaswitch.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("tools/*.py"), *ROOT.glob("data_prep/*.py")])
INNER = [("tools/bench.py", "profile"), ("tools/bench_data.py", "spans"), ("tools/checkpoint.py", "diff")]


@pytest.mark.parametrize("command", [*((script,) for script in SCRIPTS), *INNER], ids=" ".join)
def test_a_wrong_option_of_a_script(command):
    line = [sys.executable, *command, "--no-such-option"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 64 and done.stdout == ""
    assert "error:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_of_the_program(capsys, command):
    assert main([command, "--no-such-option"]) == 64
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("megaswitch: ") and "Traceback" not in told.err
