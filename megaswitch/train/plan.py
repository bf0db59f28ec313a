"""What each rank of any world would hold of a training state, without its processes and without its memory."""

from dataclasses import replace

import torch

from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.rewrite import Part
from megaswitch.checkpoint.training import is_weights_only, training_tensors
from megaswitch.config.documents import from_dict
from megaswitch.optim.optimizer import StateTensor
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.fake import fake_world
from megaswitch.topology.start import Place
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.system import build
from megaswitch.utils.errors import DataError
from megaswitch.utils.problem import refuse


def tensors_of_rank(config: RunConfig, world: int, rank: int) -> list[StateTensor]:
    """Masters and optimizer state of one rank, as views on the meta device; no process group may be there."""
    with fake_world(rank, world):
        system = build(config, Place(rank, world, rank, world, torch.device("meta")), initialise=False)
        return list(training_tensors(system.buckets, system.optimizer))


def parts_of_layout(reader: Reader, layout: LayoutConfig, world: int) -> list[list[Part]]:
    """What each rank of a run in this layout would write of a checkpoint.

    UserError when its model cannot be laid out so, DataError when it does not hold what the run would have.
    """
    config = from_dict(RunConfig, reader.state.get("config"), str(reader.path), complete=False)
    batch = config.train.micro_batch * world * layout.pp  # any that can be divided
    config = replace(config, layout=layout, train=replace(config.train, global_batch=batch))
    refuse(check(config, world))
    return [_parts_of_rank(reader, config, world, rank) for rank in range(world)]


def _parts_of_rank(reader: Reader, config: RunConfig, world: int, rank: int) -> list[Part]:
    parts = []
    for tensor in tensors_of_rank(config, world, rank):
        info = reader.tensors.get(tensor.name)
        if info is None and is_weights_only(reader):
            continue
        if info is None or info.shape != tensor.global_shape:
            raise DataError(f"{reader.path} does not hold {tensor.name} as its own configuration says")
        if tensor.primary:
            parts.append(Part(tensor.name, info, tensor.box))
    return parts
