"""Byte strings between the ranks of a group, as tensors on the CPU: nothing is ever unpickled.

The group needs a CPU backend (gloo). None stands for one process alone, where each function is the identity.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_bytes(data: bytes, group: dist.ProcessGroup | None) -> list[bytes]:
    """Every rank's byte string, in the order of the group's ranks, on every rank; lengths may differ."""
    if group is None:
        return [data]
    lengths = _all_gather(torch.tensor([len(data)]), group).tolist()
    longest = max(1, *lengths)
    rows = _all_gather(_as_tensor(data, longest), group).view(len(lengths), longest)
    return [_as_bytes(row[:length]) for row, length in zip(rows, lengths, strict=True)]


def broadcast_bytes(data: bytes, group: dist.ProcessGroup | None, source: int = 0) -> bytes:
    """The byte string of the group's rank `source`, on every rank; what the others pass is ignored."""
    if group is None:
        return data
    length = torch.tensor([len(data)])
    dist.broadcast(length, group=group, group_src=source)
    is_source = dist.get_rank(group) == source
    payload = _as_tensor(data if is_source else b"", max(1, int(length)))
    dist.broadcast(payload, group=group, group_src=source)
    return _as_bytes(payload[: int(length)])


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(dist.get_world_size(group) * x.numel())
    dist.all_gather_single(out, x, group=group)
    return out


def _as_tensor(data: bytes, length: int) -> Tensor:
    """The bytes as uint8, with zeros up to `length`."""
    return torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)


def _as_bytes(x: Tensor) -> bytes:
    return x.numpy().tobytes()
