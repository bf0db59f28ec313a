"""A Markdown table of what layouts cost, by `megaswitch dry-run`: one row a line of the list.

    python tools/layout_table.py tools/layouts.txt
    echo "switch_c_2048 512 layout.ep=512 train.micro_batch=4" | python tools/layout_table.py -

A line names a preset, the processes and configuration keys. The first rank is shown, or the one with the highest peak
of all (--worst, slower).
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megaswitch.data.prep.command import run
from megaswitch.utils.arguments import Program
from megaswitch.utils.errors import MissingInputError, UserError

HEAD = (
    "model", "GPUs", "keys", "micro-batches", "parameters held", "weights, gradients, optimizer", "peak",
    "leaves the rank a step", "FLOPs a rank", "bubble", "tokens an expert and pass",
)  # fmt: skip


def rows_of(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of each line that is neither empty nor a comment."""
    for line in lines:
        words = line.split("#")[0].split()
        if words:
            yield words


def dry_run(preset: str, world: str, keys: list[str], ranks: str) -> dict[str, Any]:
    """What the dry run says of the first of the ranks; UserError with its own words where it refuses."""
    command = [sys.executable, "-m", "megaswitch", "dry-run", "--world", world, "--ranks", ranks, "--json"]
    command += [f"--model.preset={preset}", *(f"--{key}" for key in keys)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join([preset, world, *keys])}: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    first: dict[str, Any] = told["ranks"][0]
    return first


def gigabytes(size: float) -> str:
    """10^9 bytes."""
    return f"{size / 1e9:.1f} GB"


def row(preset: str, world: str, keys: list[str], told: dict[str, Any]) -> list[str]:
    """A line of the table."""
    memory, peak = told["memory"], told["memory"]["at_peak"]
    kept = " + ".join(f"{peak[kind] / 1e9:.1f}" for kind in ("weights", "gradients", "optimizer"))
    wire = sum(collective["wire"] for collective in told["collectives"])
    flops = sum(told["flops"]["total"].values())
    tokens = told["tokens_per_expert"]
    return [
        preset, world, " ".join(f"`{key}`" for key in keys), str(told["microbatches"]),
        f"{told['parameters']['held']['total'] / 1e9:.2f} G", f"{kept} GB", gigabytes(memory["peak"]),
        gigabytes(wire), f"{flops / 1e12:.1f} T", f"{100 * told['bubble']:.0f}%",
        f"{tokens['encoder']:.0f} / {tokens['decoder']:.0f}",
    ]  # fmt: skip


def main() -> int:
    """The command; returns the exit code."""
    parser = Program(description=__doc__)
    parser.add_argument("list", help="file with a line a row, or - for standard input")
    parser.add_argument("--worst", action="store_true", help="show the rank with the highest peak")
    arguments = parser.parse_args()
    return run(lambda: table(arguments.list, "worst" if arguments.worst else "first"))


def table(name: str, ranks: str) -> None:
    """Read the list, play each line, print the table."""
    if name != "-" and not Path(name).exists():
        raise MissingInputError(f"{name} is not there; give a file with a line a row, or - for standard input")
    lines = (sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")).splitlines()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for words in rows_of(lines):
        if len(words) == 1:
            raise UserError(f"{words[0]!r} names no processes; a line is PRESET PROCESSES [KEY=VALUE ...]")
        preset, world, *keys = words
        told = dry_run(preset, world, keys, ranks)
        print("| " + " | ".join(row(preset, world, keys, told)) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
