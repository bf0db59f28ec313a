"""The scripts themselves: they run from any folder, answer --help with an example, and load no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "data_prep").glob("*.py"))


def run(*arguments, cwd=ROOT, script):
    command = [sys.executable, str(ROOT / "data_prep" / script), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_all_scripts_are_known():
    known = ["collect", "inspect", "merge", "prepare_task", "preprocess", "split", "train_tokenizer", "verify"]
    assert [name for name in SCRIPTS if name != "build_index.py"] == [f"{name}.py" for name in known]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_an_example(script, tmp_path):
    done = run("--help", script=script, cwd=tmp_path)
    assert done.returncode == 0 and f"example:\n  python data_prep/{script} " in done.stdout


@pytest.mark.parametrize("folder", ["root", "data_prep", "elsewhere"])
def test_errors_are_one_line_and_a_code_in_any_folder(folder, tmp_path):
    cwd = {"root": ROOT, "data_prep": ROOT / "data_prep", "elsewhere": tmp_path}[folder]
    done = run("nowhere", script="inspect.py", cwd=cwd)
    assert done.returncode == 66 and done.stderr.count("\n") == 1 and "nowhere.idx and nowhere.bin" in done.stderr
    assert run("--wrong", script="verify.py", cwd=cwd).returncode == 64


def test_no_command_loads_torch():
    names = ", ".join(
        f"megaswitch.data.prep.{name}"
        for name in ("collect", "train_tokenizer", "preprocess_command", "show", "verify", "merge", "split")
    )
    code = f"import sys, {names}, megaswitch.data.dataset, megaswitch.data.prefetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
