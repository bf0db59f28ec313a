"""Compiles every Triton kernel ahead of time for GPUs that are not here, and says what each takes of them.

Example:
  python tools/compile_kernels.py --arch 80 90 100 --json kernels.json

A row is a kernel and its types as a model of realistic size launches it, the greatest of all choices of warps where a
GPU would be asked which is fastest: registers a thread, bytes of shared memory a program, bytes of registers that spill
to memory, of each GPU, and which instructions do its products. No GPU is needed; nothing is run.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from kernel_compiler.report import as_table, write_json

from megaswitch.utils.arguments import Program

ARCHS = (80, 90, 100)


def main(argv: list[str] | None = None) -> int:
    """The command; 1 where a kernel spills registers."""
    lines = (__doc__ or "").splitlines()
    parser = Program(description=lines[0], epilog="\n".join(lines[1:]))
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), help="compute capabilities, 90 for an H100")
    parser.add_argument("--only", default="", metavar="WORD", help="operations whose name has this in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args(argv)
    from kernel_compiler.compile import compile_all  # here: help must not import torch

    rows = [row for arch in options.arch for row in compile_all(arch, options.only)]
    print(as_table(rows))
    if options.json:
        write_json(rows, options.json)
    spilled = [row for row in rows if row.spilled]
    if spilled:
        print(f"{len(spilled)} kernels spill registers: " + ", ".join(sorted({r.kernel for r in spilled})))
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
