"""Has Triton compile what a launch would, for a GPU that is not here, and asks the assembler what came of it."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.autotuner import Autotuner
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from kernel_compiler.cases import cases
from kernel_compiler.report import Row

_PRODUCTS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
_TYPES = {"*bf16": "bfloat16", "*fp32": "float32", "*fp64": "float64"}


class _Elsewhere:
    """Stands for the driver of a GPU that is not here: it is only asked what to compile for."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(arch: int, only: str) -> Iterator[Row]:
    """Rows of every operation whose name holds `only`."""
    driver.set_active(_Elsewhere(arch))
    launch, ask = JITFunction.run, Autotuner.run
    try:
        for operation, call in cases():
            if only not in operation:
                continue
            seen: list[Any] = []
            _watch(launch, seen)
            call()
            yield from dict.fromkeys(_row(arch, operation, kernel) for kernel in seen)
    finally:
        JITFunction.run, Autotuner.run = launch, ask


def _watch(launch: Any, seen: list[Any]) -> None:
    """Launches compile and do no more; each configuration that a GPU would be asked about is compiled."""

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append(launch(self, *args, grid=grid, warmup=True, **kwargs))

    def every_configuration(self: Any, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    JITFunction.run, Autotuner.run = compile_only, every_configuration


def _row(arch: int, operation: str, kernel: Any) -> Row:
    types = [_TYPES[t] for t in dict.fromkeys(kernel.src.signature.values()) if t in _TYPES]
    ptx = kernel.asm["ptx"]
    registers, spilled = _resources(ptx, arch)
    products = [name for name in _PRODUCTS if name in ptx]
    return Row(
        arch, operation, kernel.metadata.name.strip("_"), "+".join(types), kernel.metadata.num_warps,
        registers, kernel.metadata.shared, spilled, ", ".join(products) or "none",
    )  # fmt: skip


def _resources(ptx: str, arch: int) -> tuple[int, int]:
    """Registers a thread and bytes of them that spill, by the assembler's own account."""
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    assembler = get_ptxas(arch).path
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name={target[1]}", str(source), "-o", str(source) + ".o"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    used = re.search(r"Used (\d+) registers", said)
    assert used is not None, said
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))
    return int(used[1]), spilled
