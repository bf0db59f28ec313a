"""tools/bench_checkpoint.py: what it says of itself; and, in the long suite, that it measures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_checkpoint.py"


def tool(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_help_and_wrong_usage(tmp_path):
    done = tool("--help")
    assert done.returncode == 0 and "example:\n  python tools/bench_checkpoint.py --folder /data" in done.stdout
    assert tool("--rounds", "0").returncode == 64
    assert tool("--folder", tmp_path / "nowhere").returncode == 66


@pytest.mark.long
@pytest.mark.timeout(400)
def test_it_measures_and_leaves_nothing(tmp_path):
    done = tool("--folder", tmp_path, "--gigabytes", 1, "--rounds", 1, "--saves", 1, "--sequences", 8)
    assert done.returncode == 0, done.stderr
    rates = re.findall(r"^(?:write|read) .*?  +(\d+\.\d\d) \(", done.stdout, re.MULTILINE)
    assert len(rates) == 7 and all(float(rate) > 0 for rate in rates)
    assert "% of a step" in done.stdout
    assert list(tmp_path.iterdir()) == []
