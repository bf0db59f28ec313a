"""The command line of `megaswitch dry-run`: answers --help and wrong usage without importing torch."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from megaswitch.config.load import load
from megaswitch.data.writer import write_files
from megaswitch.model.presets import presets
from megaswitch.train.config import RunConfig
from megaswitch.utils.arguments import Parser
from megaswitch.utils.errors import UserError

_ABOUT = """Play a training step of one rank of any world on this machine, without weights, data or other processes.

The step's own code runs on tensors that have shapes and no elements: forward, backward, reduction, optimizer, and the
plan of a checkpoint. Told are the parameters held, the memory by kind over the step, every collective with its axis and
bytes, the FLOPs, the pipeline's bubble and the size of the checkpoint's shard. train.dtype=auto is bfloat16 here."""
_EXAMPLES = """The configuration's own arguments are taken as well, such as --config F.toml or --layout.ep=256.
examples:
  megaswitch dry-run --config launch/configs/switch_c_2048.toml --world 512 --rank 77
  megaswitch dry-run --model.preset=switch_c_2048 --layout.ep=2048 --world 2048 --ranks first,last,worst --json
  megaswitch dry-run --config launch/configs/switch_base_8.toml --world 8 --out memory.svg"""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    args, rest = _parser().parse_known_args(argv)
    if args.out is not None and args.out.suffix not in (".svg", ".png"):
        raise UserError(f"--out {args.out} is neither .svg nor .png; choose one of them")
    if args.world < 1:
        raise UserError("--world wants the number of processes, as in --world 2048")
    config = load(RunConfig, presets(), rest, "megaswitch dry-run", _ABOUT)
    if config.train.dtype == "auto":
        config = replace(config, train=replace(config.train, dtype="bfloat16"))
    from megaswitch.dry_run.look import draw, look  # here: help must not import torch
    from megaswitch.dry_run.text import as_text

    names = args.ranks if args.ranks is not None else str(args.rank)
    seen = look(config, args.world, names, args.routing)
    if args.out is not None:
        if len(seen) > 1:
            raise UserError("--out draws one rank; give --rank, or a single one in --ranks")
        write_files({args.out: draw(seen[0], "png" if args.out.suffix == ".png" else "svg")})
    if args.json:
        facts = [one.facts for one in seen]
        sys.stdout.write(orjson.dumps(facts[0] if args.ranks is None else {"ranks": facts}).decode() + "\n")
    else:
        sys.stdout.write("\n".join(as_text(one.facts) for one in seen))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "megaswitch dry-run",
        usage="megaswitch dry-run --world N [options] [--config F.toml ...] [--section.key=value ...]",
        description=_ABOUT,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--world", type=int, required=True, metavar="N", help="processes of the run that is played")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, default=0, metavar="R", help="the one that is looked at (default: 0)")
    several = "several: numbers, first, last, and worst, the one of all with the highest peak; separated by commas"
    which.add_argument("--ranks", metavar="R,...", help=several)
    routing = (
        "balanced: every expert is wanted by as many tokens; worst: all tokens that find a slot come to this rank's "
        "experts (default: balanced)"
    )
    parser.add_argument("--routing", choices=["balanced", "worst"], default="balanced", help=routing)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--out", type=Path, metavar="F.svg", help="also draw memory over the step: .svg or .png")
    return parser
