"""What has to be the same on all ranks before they do anything together."""

import hashlib
import platform
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TypeVar

import orjson
import torch.distributed as dist

from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.config.documents import to_dict
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import UserError

T = TypeVar("T")
_PACKAGES = ("megaswitch", "torch", "numpy", "safetensors")
_SHOWN = 8


def facts(config: RunConfig, fingerprint: str) -> dict[str, str]:
    """What this process runs with: versions, configuration, data."""
    text = orjson.dumps(to_dict(config), option=orjson.OPT_SORT_KEYS)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "byte order": sys.byteorder,
        "configuration": hashlib.sha256(text).hexdigest()[:12],
        "data": fingerprint,
    }


def refuse_unlike(mine: Mapping[str, str], group: "dist.ProcessGroup | None") -> None:
    """UserError on every rank that names the ranks whose facts are not those of most; a collective of all."""
    every = [orjson.loads(told) for told in gather_bytes(orjson.dumps(dict(mine)), group)]
    troubles = []
    for name in mine:
        values = [told.get(name, "nothing") for told in every]
        usual, _ = Counter(values).most_common(1)[0]
        odd = [f"rank {rank} has {value}" for rank, value in enumerate(values) if value != usual]
        if odd:
            more = f", and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
            troubles.append(f"{name}: {', '.join(odd[:_SHOWN])}{more}, the others {usual}")
    if troubles:
        raise UserError(
            "the processes were not started alike:\n"
            + "\n".join(f"  - {trouble}" for trouble in troubles)
            + "\ngive all of them the same installation, arguments and files"
        )


def on_first(rank: int, group: "dist.ProcessGroup | None", work: Callable[[], T]) -> T | None:
    """Does it on the first rank alone, and returns there what came of it; a UserError is raised on all of them."""
    done, trouble = None, b""
    if rank == 0:
        try:
            done = work()
        except UserError as error:
            trouble = orjson.dumps([error.exit_code, str(error)])
    if trouble := broadcast_bytes(trouble, group):
        code, message = orjson.loads(trouble)
        refused = UserError(message)
        refused.exit_code = code
        raise refused
    return done
