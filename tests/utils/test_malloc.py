"""Freed memory that stays: counted are the pages that the system has to clear, in processes of their own."""

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from megaswitch.utils.malloc import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 40_000_000
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults)
"""


def _run(mode: str, **environment: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", _PROGRAM, mode]
    words = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return words[0] == "True", int(words[1])


def test_pages_are_not_cleared_again():
    kept, faults = _run("keep")
    if not kept:
        pytest.skip("this C library has nothing to set")
    assert faults < 100
    assert _run("leave")[1] > 1000, "without it 40 MB come from the system each time"


def test_the_environment_goes_first():
    assert _run("keep", MALLOC_TOP_PAD_="131072")[0] is False
