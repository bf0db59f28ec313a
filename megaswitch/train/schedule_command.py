"""The command line of `megaswitch schedule`: answers --help and wrong usage without importing torch."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import get_args, get_type_hints

import orjson

from megaswitch.config.load import load
from megaswitch.data.writer import write_files
from megaswitch.model.presets import presets
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.config import RunConfig
from megaswitch.utils.arguments import Parser
from megaswitch.utils.errors import UserError

_ABOUT = """Show a pipeline schedule: who computes what and when, who waits, how much is held.

Nothing is started. How long a stage takes is reckoned from the FLOPs of its forward; the backward's two halves, of
the inputs and of the weights, take as long each. Text, with a line for each rank, unless --out names a picture."""
_EXAMPLES = """The configuration's own arguments are taken as well, such as --config F.toml or --layout.stages=6,6,6,6.
examples:
  megaswitch schedule --pp 4 --microbatches 8 --kind 1f1b --out f.svg
  megaswitch schedule --kind all
  megaswitch schedule --preset switch_c_2048 --pp 4 --kind zb_v --json"""
_KINDS = get_args(get_type_hints(LayoutConfig)["schedule"])
_PRESET = "switch_base_8"
_PP = 4


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    args, rest = _parser().parse_known_args(argv)
    if args.out is not None and args.out.suffix not in (".svg", ".png"):
        raise UserError(f"--out {args.out} is neither .svg nor .png; choose one of them, or leave --out away for text")
    if not 0 <= args.transfer < inf or (args.microbatches is not None and args.microbatches < 1):
        raise UserError("--microbatches wants 1 or more, --transfer 0 or more")
    config = _config(args, rest)
    fitting = [kind for kind in _KINDS if kind != "zb_v" or config.layout.num_chunks == 2]
    kinds = fitting if args.kind == "all" else [config.layout.schedule]
    from megaswitch.train.show_schedule import as_facts, draw, play, show  # here: help must not import torch

    plays = [play(config, kind, args.microbatches or 2 * config.layout.pp, args.transfer) for kind in kinds]
    if args.out is not None:
        write_files({args.out: draw(plays, "png" if args.out.suffix == ".png" else "svg")})
    elif args.json:
        sys.stdout.write(orjson.dumps(as_facts(plays)).decode() + "\n")
    else:
        show(plays)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "megaswitch schedule",
        usage="megaswitch schedule [options] [--config F.toml ...] [--section.key=value ...]",
        description=_ABOUT,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--kind", choices=[*_KINDS, "all"], help="as layout.schedule; all (that fit) for comparison")
    parser.add_argument("--pp", metavar="N", help=f"ranks, as layout.pp (default: {_PP})")
    parser.add_argument("--chunks", metavar="N", help="chunks a rank, as layout.chunks (default: 2)")
    parser.add_argument("--microbatches", type=int, metavar="N", help="of one step (default: twice the ranks)")
    preset = f"as model.preset (default: {_PRESET}, where nothing else says what the model is)"
    parser.add_argument("--preset", metavar="NAME", help=preset)
    transfer = "time of a message from rank to rank, 1 being an average stage's forward (default: 0)"
    parser.add_argument("--transfer", type=float, default=0.0, metavar="T", help=transfer)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--out", type=Path, metavar="F.svg", help="draw a picture: .svg or .png")
    form.add_argument("--json", action="store_true", help="one JSON object, with every action's beginning and end")
    return parser


def _config(args: argparse.Namespace, rest: Sequence[str]) -> RunConfig:
    """The configuration's own arguments, then the short ones; a model and a pipeline where nothing names them."""
    short = {"model.preset": args.preset, "layout.pp": args.pp, "layout.chunks": args.chunks}
    short["layout.schedule"] = None if args.kind == "all" else args.kind
    given = [*rest, *(f"--{key}={value}" for key, value in short.items() if value is not None)]
    if not any(word.startswith(("--config", "--model.")) for word in given):
        given.append(f"--model.preset={_PRESET}")
    config = load(RunConfig, presets(), given, "megaswitch schedule", _ABOUT)
    return config if config.layout.pp > 1 or args.pp else replace(config, layout=replace(config.layout, pp=_PP))
