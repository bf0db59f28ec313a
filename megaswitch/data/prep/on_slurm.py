"""Runs the shards of a plan as a Slurm array, and what joins them as a job behind it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megaswitch.data.prep.plan import Plan
from megaswitch.data.writer import write_files
from megaswitch.utils.errors import UserError

_SCRIPT = """#!/usr/bin/env bash
# {what}
#SBATCH --job-name=preprocess
#SBATCH --output={folder}/slurm-%A-%a.log
#SBATCH --cpus-per-task={workers}
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}
exec {python} -m megaswitch.data.prep.preprocess_command --plan {folder} {arguments}
"""


def submit(plan: Plan, tasks: int, workers: int, extra: Sequence[str]) -> tuple[str, str]:
    """Writes both scripts into the plan's folder and submits them; returns the jobs' numbers.

    `tasks` array tasks of `workers` processes each; `extra` are further options of sbatch. UserError where sbatch is
    missing or refuses.
    """
    array, join = plan.folder / "array.sbatch", plan.folder / "join.sbatch"
    shard = f'--shard "$SLURM_ARRAY_TASK_ID"/{tasks} --workers {workers}'
    write_files(
        {
            array: _script(plan, "One of the tasks that encode the shards", workers, shard),
            join: _script(plan, "Joins the shards into the corpus", 1, "--join"),
        }
    )
    first = _sbatch([*extra, f"--array=0-{tasks - 1}", str(array)])
    second = _sbatch([*extra, f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes", str(join)])
    return first, second


def _script(plan: Plan, what: str, workers: int, arguments: str) -> bytes:
    return _SCRIPT.format(
        what=what,
        folder=shlex.quote(str(plan.folder.absolute())),
        root=shlex.quote(str(Path(__file__).parents[3])),
        python=shlex.quote(sys.executable),
        workers=workers,
        arguments=arguments,
    ).encode()


def _sbatch(arguments: list[str]) -> str:
    try:
        done = subprocess.run(["sbatch", "--parsable", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        raise UserError("sbatch is not on the PATH: --executor slurm is for a machine that submits to Slurm") from None
    if done.returncode:
        raise UserError(f"sbatch refused: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip().split(";")[0].split(os.linesep)[-1]
