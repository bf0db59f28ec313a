"""Triton's kernels against their definitions, by the tests that hold the compiled ones to them.

They run in Triton's interpreter, which a process has from its start or not at all: hence a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megaswitch.ops import registry
from megaswitch.ops.fused.kernels import KERNELS
from megaswitch.ops.triton.load import triton_kernels
from megaswitch.ops.unavailable import Unavailable

pytest.importorskip("triton", reason="triton is not installed here")

HERE = Path(__file__).parent
FUSED = ["adamw", "rms_norm", "dropout", "cross_entropy", "router", "permute", "products", "attention"]
TESTS = ["adafactor", *(f"fused_{name}" for name in FUSED)]
ALL = "not is_refused"
"""A GPU cannot refuse an expert that there is not without being waited for."""
QUICK = f"{ALL} and not dtype0 and not 2100 and not 40 and not shape3 and not shape4 and not shape5 and not border"
"""A program takes some milliseconds: large shapes are left to the long tests."""


def interpret(*arguments: str) -> str:
    files = [str(HERE / f"test_{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-x", "-W", "ignore", *files, *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_kernels_in_the_interpreter():
    assert " passed" in interpret("-v", "-k", QUICK)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_shapes_in_the_interpreter():
    assert " passed" in interpret("-v", "-k", ALL)


def test_every_kernel_is_one_of_the_libraries():
    code = "from megaswitch.ops.triton.kernels import IMPLEMENTATIONS; print(*IMPLEMENTATIONS)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(names) <= {kernel.name for kernel in KERNELS}
    assert len(names) == len(set(names)) > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said():
    with pytest.raises(Unavailable, match="no CUDA device"):
        triton_kernels()
    assert "CUDA" in registry.availability()["triton"]
