"""The command line of `megaswitch info`: answers --help and wrong usage without importing torch."""

import sys
from collections.abc import Sequence
from textwrap import fill

import orjson

from megaswitch.model.presets import presets
from megaswitch.utils.arguments import Parser
from megaswitch.utils.errors import UserError

_ABOUT = """Parameters by part and forward FLOPs per sequence of a preset, beside the paper's figures; or, for the word
ops, which implementations of the operations are to be had here, and why the others are not."""
_EXAMPLES = "Examples: megaswitch info switch_base_128 --json; megaswitch info ops."


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    names = list(presets())
    parser = Parser("megaswitch info", fill(_ABOUT, 100), fill(f"{_EXAMPLES} Presets: {', '.join(names)}", 100))
    parser.add_argument("preset", metavar="PRESET|ops")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    args = parser.parse_args(argv)
    if args.preset == "ops":
        return _operations(args.json)
    if args.preset not in names:
        raise UserError(f"there is no preset {args.preset}; the presets are {', '.join(names)}")
    from megaswitch.train.info import as_text, describe  # here: help must not import torch

    facts = describe(args.preset)
    sys.stdout.write(orjson.dumps(facts).decode() + "\n" if args.json else as_text(facts))
    return 0


def _operations(as_json: bool) -> int:
    from megaswitch.ops.registry import availability  # here: help must not import torch

    found = availability()
    lines = [f"{name:<12}{'not available: ' + reason if reason else 'available'}\n" for name, reason in found.items()]
    told = {name: {"available": not reason, "reason": reason} for name, reason in found.items()}
    sys.stdout.write(orjson.dumps(told).decode() + "\n" if as_json else "".join(lines))
    return 0
