"""Looks into checkpoints and makes new ones of them; what it reads stays as it is.

  inspect   lists what a checkpoint holds: step, configuration, files, tensors
  verify    reads every byte of a checkpoint and compares it with its checksum
  reshard   writes a checkpoint's content cut into other files, a number of them or one for each rank of a layout
  average   writes the mean of the weights of several checkpoints
  diff      tells which tensors of two checkpoints differ and by how much; exit code 1 when any does

Checkpoints are folders or URLs (`s3://bucket/run/checkpoints/step-00001000`); new ones are written to a disk. At any
time one block of one tensor is in memory. `COMMAND --help` shows the options of each.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from megaswitch.data.prep.command import Parser, positive, progress, run, say
from megaswitch.utils.errors import MissingInputError

if TYPE_CHECKING:  # help must not wait for torch
    from megaswitch.checkpoint.format import TensorInfo
    from megaswitch.checkpoint.reader import Reader

STEP = "runs/quickstart/checkpoints/step-00000300"
DIFFERENT = 1
AXES = ("tp", "pp", "ep", "etp")
Work = Callable[[argparse.Namespace], int]


def opened(text: str) -> "Reader":
    """A checkpoint whose manifest and sizes are right; its hashes are not looked at."""
    from megaswitch.checkpoint.folders import folder_at
    from megaswitch.checkpoint.places import place
    from megaswitch.checkpoint.reader import Reader

    path = place(text)
    if not folder_at(path).sizes():
        raise MissingInputError(f"{path} is no checkpoint; give the folder of one (.../checkpoints/step-...)")
    return Reader(path, verify=False)


def size_of(tensors: "Sequence[TensorInfo]") -> int:
    """Bytes of all these tensors."""
    return sum(prod(info.shape) * info.dtype.itemsize for info in tensors)


def inspect(args: argparse.Namespace) -> int:
    """Step, configuration, files and tensors."""
    from megaswitch.checkpoint.choose import describe

    print(describe(opened(args.path).path))
    return 0


def verify(args: argparse.Namespace) -> int:
    """What was checked, when all of it is right; DataError names the first file that is wrong."""
    from megaswitch.checkpoint.reader import check, check_hashes

    reader = opened(args.path)
    manifest = check(reader.path)
    size = sum(file.size for file in manifest.files.values())
    with progress("verify", size) as advance:
        check_hashes(reader.path, manifest, advance=advance)
    counts = f"{len(reader.tensors)} tensors, {len(manifest.files)} files, {size} bytes"
    print(f"{reader.path}: step {reader.step}, {counts}: all right")
    return 0


def reshard(args: argparse.Namespace) -> int:
    """Other files, the same tensors."""
    from megaswitch.checkpoint.rewrite import even_parts
    from megaswitch.checkpoint.rewrite import reshard as write

    reader = opened(args.path)
    if args.files:
        files = even_parts(reader.tensors, args.files)
    else:
        from megaswitch.topology.config import LayoutConfig
        from megaswitch.train.plan import parts_of_layout

        axes = {axis: getattr(args, axis) for axis in AXES}
        files = parts_of_layout(reader, LayoutConfig(chunks=args.chunks, **axes), args.world)
    with progress("reshard", size_of(list(reader.tensors.values()))) as advance:
        write(reader, args.target, files, advance)
    print(f"{args.target}: step {reader.step}, {len(reader.tensors)} tensors in {len(files)} files")
    return 0


def average(args: argparse.Namespace) -> int:
    """The mean of the weights."""
    from megaswitch.checkpoint.rewrite import WEIGHT
    from megaswitch.checkpoint.rewrite import average as write

    readers = [opened(path) for path in args.paths]
    keep = args.optimizer == "last"
    tensors = [info for name, info in readers[-1].tensors.items() if keep or name.startswith(WEIGHT)]
    with progress("average", size_of(tensors)) as advance:
        write(readers, args.out, args.files, keep, advance)
    print(f"{args.out}: the mean of {len(readers)} checkpoints, {len(tensors)} tensors")
    return 0


def diff(args: argparse.Namespace) -> int:
    """Tensors that differ, one a line on stdout; what differs beside them is told on stderr and does not count."""
    from megaswitch.checkpoint.compare import compare
    from megaswitch.checkpoint.training import differences

    one, other = opened(args.path), opened(args.other)
    for line in differences({"step": one.step, **one.state}, {"step": other.step, **other.state}):
        say(f"note: {line}")
    common = [info for name, info in one.tensors.items() if name in other.tensors]
    count = 0
    with progress("diff", size_of(common)) if not sys.stdout.isatty() else nullcontext(lambda count: None) as advance:
        for difference in compare(one, other, advance):
            count += 1
            print(difference, flush=True)
    print(f"{count} of {len(one.tensors.keys() | other.tensors.keys())} tensors differ")
    return DIFFERENT if count else 0


def with_path(name: str, example: str) -> Parser:
    """A parser of a command on a checkpoint."""
    parser = Parser((COMMANDS[name][0].__doc__ or "").strip(), f"python tools/checkpoint.py {name} {example}")
    parser.prog = f"checkpoint.py {name}"
    return parser


def look_parser(name: str) -> Parser:
    """`inspect` and `verify`."""
    parser = with_path(name, STEP)
    parser.add_argument("path", metavar="PATH", help="folder or URL of one checkpoint")
    return parser


def reshard_parser(name: str) -> Parser:
    """`reshard`."""
    parser = with_path(name, f"{STEP} resharded --world 8 --tp 2 --pp 2")
    parser.add_argument("path", metavar="SOURCE", help="folder or URL of one checkpoint")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write, which must not be there yet")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--files", type=positive, metavar="N", help="as many files, of the same size")
    how.add_argument("--world", type=positive, metavar="N", help="a file for each of N ranks, what it would write")
    for axis in AXES:
        parser.add_argument(f"--{axis}", type=positive, default=1, help=f"with --world: as layout.{axis} (default: 1)")
    parser.add_argument("--chunks", type=positive, help="with --world: as layout.chunks (default: 2 when pp > 1)")
    return parser


def average_parser(name: str) -> Parser:
    """`average`."""
    steps = "runs/first/checkpoints/step-00000020 runs/first/checkpoints/step-00000040"
    parser = with_path(name, f"{steps} --out averaged")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders or URLs of checkpoints, the last one last")
    parser.add_argument("--out", type=Path, required=True, metavar="TARGET", help="folder to write, not there yet")
    parser.add_argument("--files", type=positive, default=1, metavar="N", help="files to write (default: 1)")
    parser.add_argument(
        "--optimizer",
        choices=("none", "last"),
        default="none",
        help="none: weights alone, for a fresh optimizer; last: the last checkpoint's, to go on with (default: none)",
    )
    return parser


def diff_parser(name: str) -> Parser:
    """`diff`."""
    parser = with_path(name, f"{STEP} resharded")
    parser.add_argument("path", metavar="ONE", help="folder or URL of one checkpoint")
    parser.add_argument("other", metavar="OTHER", help="folder or URL of another one")
    return parser


COMMANDS: dict[str, tuple[Work, Callable[[str], Parser]]] = {
    "inspect": (inspect, look_parser),
    "verify": (verify, look_parser),
    "reshard": (reshard, reshard_parser),
    "average": (average, average_parser),
    "diff": (diff, diff_parser),
}


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(__doc__ or "", f"python tools/checkpoint.py verify {STEP}")
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(sys.argv[1:2]).command
    work, make_parser = COMMANDS[command]
    args = make_parser(command).parse_args(sys.argv[2:])
    codes: list[int] = []
    return run(lambda: codes.append(work(args))) or codes[0]


if __name__ == "__main__":
    sys.exit(main())
