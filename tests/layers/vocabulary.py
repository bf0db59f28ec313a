"""A vocabulary that tp does not divide, for the tests of what is split over it."""

import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.model.config import ModelConfig
from megaswitch.topology.topology import Axis, make_axis

VOCABULARY, WIDTH, BATCH, LENGTH = 13, 4, 2, 6


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def config(tied: bool = True) -> ModelConfig:
    return ModelConfig(vocab_size=VOCABULARY, d_model=WIDTH, tied_embeddings=tied)


def axis_here(n: int) -> Axis:
    return make_axis("tp", range(n), dist.get_rank())
