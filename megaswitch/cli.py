"""The `megaswitch` command. Help and configuration errors are answered without importing torch."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.topology.environment import process_number
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import EXIT_INTERNAL, UserError

USAGE = """usage: megaswitch COMMAND ...

Pretrains Switch Transformers.

  train         train, or go on from the newest checkpoint of run.dir
  eval          score the validation set with a checkpoint, beside a unigram model
  fill          fill in masked spans of a text with a checkpoint
  info          parameters and FLOPs of a preset
  schedule      show a pipeline schedule as text or a picture: who computes what, who waits
  preflight     look at everything a run needs, send a batch through a whole step, and throw it away
  dry-run       play a step of one rank of any world: memory, collectives, FLOPs; nothing is started
  check-config  say everything that is wrong with a configuration, start nothing

Each command answers --help. Under torchrun: torchrun --nproc-per-node 4 -m megaswitch train ...
Example: megaswitch train --model.preset=switch_tiny --data.train=corpus --train.steps=100
"""


def _config(command: str, argv: Sequence[str], description: str) -> RunConfig:
    return load(RunConfig, presets(), argv, f"megaswitch {command}", description)


def _train(argv: Sequence[str]) -> int:
    config = _config("train", argv, "Train a model, or go on from the newest checkpoint of run.dir.")
    from megaswitch.train.loop import train  # here: help must not import torch

    return train(config)


def _preflight(argv: Sequence[str]) -> int:
    config = _config("preflight", argv, "Look at everything that `megaswitch train` with these arguments needs.")
    from megaswitch.train.preflight_command import preflight

    return preflight(config)


def _eval(argv: Sequence[str]) -> int:
    config = _config("eval", argv, "Score the validation set with the checkpoint that checkpoint.resume names.")
    from megaswitch.train.score import score

    return score(config)


def _fill(argv: Sequence[str]) -> int:
    from megaswitch.train.fill import main

    return main(argv)


def _info(argv: Sequence[str]) -> int:
    from megaswitch.train.info_command import main

    return main(argv)


def _schedule(argv: Sequence[str]) -> int:
    from megaswitch.train.schedule_command import main

    return main(argv)


def _dry_run(argv: Sequence[str]) -> int:
    from megaswitch.dry_run.command import main

    return main(argv)


def _check_config(argv: Sequence[str]) -> int:
    """--world N (default: WORLD_SIZE or 1) stands before or between the configuration's own arguments."""
    rest, world = list(argv), process_number("WORLD_SIZE", 1, least=1)
    for i, word in enumerate(argv):
        if word == "--world" or word.startswith("--world="):
            value = word.partition("=")[2] or (argv[i + 1] if i + 1 < len(argv) else "")
            if not (value.isdecimal() and int(value)):
                raise UserError("--world wants the number of processes, as in --world 8")
            world = int(value)
            del rest[i : i + (1 if "=" in word else 2)]
            break
    config = _config("check-config", rest, "Check a configuration for a world of --world N processes; start nothing.")
    from megaswitch.train.check import check
    from megaswitch.utils.problem import refuse

    refuse(check(config, world))
    sys.stdout.write(f"the configuration works with {world} process(es)\n")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "fill": _fill,
    "info": _info,
    "schedule": _schedule,
    "preflight": _preflight,
    "dry-run": _dry_run,
    "check-config": _check_config,
}


def _fail(error: Exception) -> int:
    """One clear line (or list) on standard error, and the exit code of its kind."""
    code = getattr(error, "exit_code", EXIT_INTERNAL)
    rank = os.environ.get("RANK", "0")
    if rank == "0" or code not in (64, 65, 66, 73, 78):  # what every rank finds alike is said once
        sys.stderr.write(f"megaswitch: {error}\n")
    return int(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 64
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"megaswitch: there is no command {json.dumps(argv[0])}\n\n{USAGE}")
        return 64
    try:
        return COMMANDS[argv[0]](argv[1:])
    except Exception as error:
        if hasattr(error, "exit_code"):
            return _fail(error)
        traceback.print_exc()
        return EXIT_INTERNAL
