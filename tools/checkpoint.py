"""Looks into a checkpoint: `inspect` lists what it holds, `verify` checks every byte. Both leave it as it is."""

import sys
from pathlib import Path

from megaswitch.data.prep.command import Parser, run
from megaswitch.utils.errors import MissingInputError


def inspect(path: Path) -> str:
    """Step, configuration, files and tensors; DataError when manifest or file sizes are wrong."""
    from megaswitch.checkpoint.choose import describe  # here: help must not wait for torch

    return describe(path)


def verify(path: Path) -> str:
    """What was checked, when all of it is right; DataError names the first file that is wrong."""
    from megaswitch.checkpoint.reader import Reader, check

    reader = Reader(path, verify=True)
    files = check(path).files.values()
    size = sum(file.size for file in files)
    return f"{path}: step {reader.step}, {len(reader.tensors)} tensors, {len(files)} files, {size} bytes: all right"


COMMANDS = {"inspect": inspect, "verify": verify}


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(__doc__ or "", "python tools/checkpoint.py verify runs/quickstart/checkpoints/step-00000300")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of one checkpoint")
    args = parser.parse_args()

    def work() -> None:
        if not args.path.is_dir():
            raise MissingInputError(f"{args.path} is no folder; give that of a checkpoint (.../checkpoints/step-...)")
        print(COMMANDS[args.command](args.path))

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
