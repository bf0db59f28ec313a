"""Nodes: whether the world's processes, and the groups of a layout, lie evenly on them."""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megaswitch.topology.config import LayoutConfig
from megaswitch.utils.errors import UserError
from megaswitch.utils.problem import Problem

_NAME_BYTES = 64
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Node:
    """A host and how many processes of the run it says it has."""

    name: str
    size: int


def gather_nodes(local_rank: int, local_world: int, device: torch.device) -> list[Node]:
    """All nodes in the order of their ranks, told by the first process of each; every rank calls it, and gets the same.

    `device` is one that the world's backend can send from.
    """
    name = socket.gethostname().encode(errors="replace")[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    own = torch.tensor([local_rank, local_world, *name], device=device)
    rows = torch.empty(dist.get_world_size() * len(own), dtype=own.dtype, device=device)
    dist.all_gather_single(rows, own)
    return [
        Node(bytes(letters).rstrip(b"\0").decode(errors="replace"), size)
        for local, size, *letters in rows.view(-1, len(own)).tolist()
        if local == 0
    ]


def refuse_uneven(nodes: Sequence[Node], world: int) -> None:
    """UserError that names the nodes unless all have the same number of processes, and together `world` of them."""
    sizes = {node.size for node in nodes}
    counts = ", ".join(f"{size} on {_names(n.name for n in nodes if n.size == size)}" for size in sorted(sizes))
    if len(sizes) > 1:
        raise UserError(
            f"the nodes have different numbers of processes: {counts}. Data-parallel groups would lie unevenly on "
            "them, and all would wait for the fullest: start the same number everywhere (NPROC of launch/train.sh, "
            "--nproc-per-node of torchrun), and leave out a node that cannot"
        )
    if sum(node.size for node in nodes) != world:
        raise UserError(
            f"the environment's WORLD_SIZE is {world}, but LOCAL_WORLD_SIZE and LOCAL_RANK say {counts or 'nothing'}; "
            "torchrun sets all three: start by torchrun"
        )


def _names(names: Iterable[str]) -> str:
    """`a, b` of few; of many how many they are, and the first."""
    known = list(names)
    few = ", ".join(known[:_NAMES_SHOWN])
    return few if len(known) <= _NAMES_SHOWN else f"{len(known)} nodes ({few}, ...)"


def node_problems(layout: LayoutConfig, world: int, local_world: int) -> list[Problem]:
    """What makes a layout that is possible in `world` lie unevenly on nodes of `local_world` processes each.

    Tensor-parallel groups, and the dp x tp processes of a pipeline rank, are blocks of neighbouring ranks. A block is
    to fill whole nodes, or whole blocks a node: else some groups would be cut by a node's border where others are
    not, or have more members on one node than on another, and all would wait for these.
    """
    if not _even(layout.tp, local_world):
        remedy = f"choose a layout.tp that divides {local_world}, or a multiple of {local_world}"
        message = f"is {layout.tp}, but nodes have {local_world} processes: the border of a node would cut some groups"
        return [Problem("layout.tp", message, remedy)]
    block = world // layout.pp
    if _even(block, local_world):
        return []
    others = [p for p in range(1, world + 1) if world % (p * layout.tp) == 0 and _even(world // p, local_world)]
    return [
        Problem(
            "layout.pp",
            f"is {layout.pp}, which leaves dp x tp = {block} processes to a pipeline rank, but nodes have "
            f"{local_world}: data-parallel groups would lie unevenly on nodes",
            f"with {world} processes and tp {layout.tp}, layout.pp can be {', '.join(map(str, others))}",
        )
    ]


def _even(block: int, local_world: int) -> bool:
    return block % local_world == 0 or local_world % block == 0
