"""Runs the shards of a plan on a Ray cluster whose machines share the plan's folder and have megaswitch installed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module

from megaswitch.data.prep.plan import Plan, load_plan
from megaswitch.data.prep.shard import write_shard
from megaswitch.utils.errors import DataError, UserError


def run_on_ray(plan: Plan, numbers: Sequence[int], address: str) -> Iterator[int]:
    """Shard after shard as they are done; one CPU each. `address`: of the cluster, empty for one made here.

    Raises what a shard raised, DataError where a worker dies.
    """
    try:
        ray = import_module("ray")
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install 'megaswitch[ray]'") from None
    plan.save()
    try:
        ray.init(address=address or None, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, OSError, RuntimeError) as error:
        raise UserError(f"no Ray cluster at {address or 'this machine'}: {error}") from None
    try:
        work = ray.remote(num_cpus=1, max_retries=3)(_work)
        running = [work.remote(os.getcwd(), str(plan.folder), number) for number in numbers]
        while running:
            done, running = ray.wait(running)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray gave up: {str(error).splitlines()[0]}; the same command goes on from here") from None
    finally:
        ray.shutdown()


@lru_cache(maxsize=1)
def _plan(folder: str) -> Plan:
    return load_plan(folder)


def _work(cwd: str, folder: str, number: int) -> int:
    os.chdir(cwd)  # addresses in the plan are as the user gave them
    return write_shard(_plan(folder), number)
