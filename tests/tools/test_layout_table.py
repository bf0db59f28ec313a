"""tools/layout_table.py: the table that launch/README.md holds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table(lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "layout_table.py"), "-"]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100)


def test_a_row():
    done = table("# nothing\nswitch_tiny 2 layout.ep=2 train.micro_batch=2\n")
    assert done.returncode == 0, done.stderr
    head, _, row = done.stdout.strip().splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["model"] == "switch_tiny" and cells["GPUs"] == "2"
    assert cells["keys"] == "`layout.ep=2` `train.micro_batch=2`"
    assert cells["micro-batches"] == "4" and cells["bubble"] == "0%"


def test_what_cannot_be_is_told():
    done = table("switch_tiny 3 layout.ep=2\n")
    assert done.returncode != 0
    assert "switch_tiny 3 layout.ep=2" in done.stderr and "layout.ep" in done.stderr and "Traceback" not in done.stderr


def test_the_kept_list_is_that_of_the_page():
    """Every line of tools/layouts.txt has its row in launch/README.md."""
    page = (ROOT / "launch" / "README.md").read_text("utf-8")
    lines = (ROOT / "tools" / "layouts.txt").read_text("utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert rows
    for preset, world, *keys in rows:
        assert f"| {preset} | {world} | {' '.join(f'`{key}`' for key in keys)} |" in page, preset
