"""A world that is only thought of: its process groups are of any size and do nothing, and this is its one process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def fake_world(rank: int, world: int) -> Iterator[None]:
    """Inside, this process is `rank` of `world`; torch's process group that talks to nobody stands for the others."""
    assert not dist.is_initialized() and 0 <= rank < world
    dist.init_process_group("fake", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()
