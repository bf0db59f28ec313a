"""The command `data_prep/preprocess.py`: its options, and which executor runs the plan."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from megaswitch.data.prep.command import Parser, positive, run, say
from megaswitch.data.prep.options import add_reading, reading_of, sources_of
from megaswitch.data.prep.plan import Plan, load_plan, make_plan
from megaswitch.data.prep.preprocess import Executor, at_work, join, local, pending, preprocess, run_shards
from megaswitch.data.prep.report import Summary
from megaswitch.data.sidecar import Sidecar
from megaswitch.utils.errors import UserError

_EXAMPLE = """python data_prep/preprocess.py --input docs.jsonl --tokenizer docs.model --output data/docs --workers 2
  zcat docs.jsonl.gz | python data_prep/preprocess.py --input - --format jsonl --tokenizer docs.model --output data/docs
  python data_prep/preprocess.py --input 'crawl/*.jsonl.zst' --where lang=de --on-bad skip --tokenizer mt5.model \\
      --output data/de --executor slurm --tasks 64 --workers 16 --sbatch='--partition=cpu --time=4:00:00'"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "Turn text into a corpus: PREFIX.bin and PREFIX.idx with the ids, PREFIX.json with what made them. A run that "
        "was stopped goes on when the same command is given again; finished shards wait in PREFIX.parts.",
        _EXAMPLE,
    )
    add_reading(parser, required=False)
    parser.add_argument("--tokenizer", metavar="M.model")
    parser.add_argument("--output", metavar="PREFIX", help="path without ending; a corpus there is replaced")
    parser.add_argument("--sentences", action="store_true", help="each sentence a sequence of its document")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)"
    )
    parser.add_argument(
        "--executor",
        choices=["local", "slurm", "ray"],
        default="local",
        help="processes here (default), an array of Slurm tasks with --workers processes each, or a Ray cluster; the "
        "corpus is the same, byte for byte",
    )
    parser.add_argument("--tasks", type=positive, default=16, metavar="N", help="Slurm: array tasks (default: 16)")
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="Slurm: further options of sbatch, as one word")
    parser.add_argument("--ray-address", default="", metavar="A", help="Ray: of the cluster (default: one made here)")
    parser.add_argument("--plan", metavar="PREFIX.parts", help="work on a plan that --executor slurm wrote")
    parser.add_argument("--shard", metavar="I/N", help="with --plan: every N-th shard from the I-th (from 0) on")
    parser.add_argument("--join", action="store_true", help="with --plan: join the shards, all of which are done")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plan is None and not (options.input and options.tokenizer and options.output):
        parser.error("--input, --tokenizer and --output are required")
    if options.plan is not None and bool(options.shard) == options.join:
        parser.error("--plan takes either --shard or --join")

    def work() -> None:
        if options.plan is None:
            _start(options)
        elif options.join:
            plan = load_plan(options.plan)
            _tell(plan, *join(plan))
        else:
            plan = load_plan(options.plan)
            run_shards(plan, local(options.workers), _share(plan, options.shard))

    return run(work, "finished shards are kept in PREFIX.parts, the same command goes on from there")


def _start(options: argparse.Namespace) -> None:
    reading, sources = reading_of(options), sources_of(options)
    plan = make_plan(sources, reading, options.tokenizer, options.output, options.sentences)
    if options.executor == "local":
        _tell(plan, *preprocess(plan, local(options.workers)))
        return
    if plan.reads_stdin:
        raise UserError("standard input is here and nowhere else: leave --executor local, or name files")
    if options.executor == "ray":
        _tell(plan, *preprocess(plan, _ray(options.ray_address)))
    else:
        _submit(plan, options)


def _ray(address: str) -> Executor:
    from megaswitch.data.prep.on_ray import run_on_ray

    return lambda plan, numbers: run_on_ray(plan, numbers, address)


def _submit(plan: Plan, options: argparse.Namespace) -> None:
    from megaswitch.data.prep.on_slurm import submit

    with at_work(plan, keep=True):
        plan.save()
        waiting = pending(plan)
    if not waiting:
        _tell(plan, *join(plan))
        return
    tasks = min(options.tasks, len(plan.shards))
    array, last = submit(plan, tasks, options.workers, shlex.split(options.sbatch))
    say(f"{len(waiting)} of {len(plan.shards)} shards in {tasks} tasks: job {array}; joined by job {last}")
    say(f"logs are in {plan.folder}; if a task fails, the same command submits what is left")


def _share(plan: Plan, text: str) -> list[int]:
    first, slash, step = text.partition("/")
    if not (slash and first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise UserError(f"--shard {text!r} is not I/N with I from 0 to N - 1, as in 3/16")
    mine = range(int(first), len(plan.shards), int(step))
    return [number for number in pending(plan) if number in mine]


def _tell(plan: Plan, sidecar: Sidecar, summary: Summary) -> None:
    summary.say()
    say(f"{plan.output}: {sidecar.documents} documents, {sidecar.tokens} tokens of {sidecar.dtype}")


if __name__ == "__main__":
    sys.exit(main())
