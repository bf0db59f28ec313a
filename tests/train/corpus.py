"""A small corpus and a configuration that trains on it, for tests of whole runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megaswitch.checkpoint.config import CheckpointConfig
from megaswitch.data.config import DataConfig
from megaswitch.data.layout import dtype_for
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter
from megaswitch.model.config import ModelConfig
from megaswitch.optim.config import OptimConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.start import Place
from megaswitch.train.config import EvalConfig, LogConfig, PlaceConfig, RunConfig, TrainConfig

VOCABULARY = 160
MODEL_ARGUMENTS = [
    "--model.vocab_size=160",
    "--model.d_model=16",
    "--model.d_ff=24",
    "--model.d_kv=4",
    "--model.num_heads=4",
    "--model.num_encoder_layers=2",
    "--model.num_decoder_layers=2",
    "--model.num_experts=4",
    "--model.num_sparse_encoder_layers=1",
    "--model.num_sparse_decoder_layers=1",
    "--model.encoder_length=16",
    "--model.decoder_length=6",
]
"""The model of `tiny_run` for a command line, without noise and with the usual capacity."""


def write_corpus(prefix: Path, documents: int = 60, seed: int = 0) -> Path:
    """Random documents of a tokenizer with 60 pieces and 100 sentinels."""
    rng = np.random.default_rng(seed)
    with IndexedWriter(str(prefix), dtype_for(VOCABULARY)) as writer:
        for _ in range(documents):
            writer.add_document(rng.integers(3, 60, rng.integers(5, 60)).tolist())
        writer.finish(TokenizerFacts("f" * 32, 60))
    return prefix


def tiny_run(folder: Path, corpus: Path, **layout: Any) -> RunConfig:
    """2 + 2 blocks, 4 experts, 16/6 tokens, capacity that drops; 4 sequences a step."""
    return RunConfig(
        model=ModelConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            d_ff=24,
            d_kv=4,
            num_heads=4,
            num_encoder_layers=2,
            num_decoder_layers=2,
            num_experts=4,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            encoder_length=16,
            decoder_length=6,
            capacity_factor=1.0,
            min_capacity=1,
            dropout=0.1,
            init_scale=1.0,
        ),
        layout=LayoutConfig(**layout),
        train=TrainConfig(steps=6, global_batch=4, micro_batch=1, seed=5, dtype="float64"),
        optim=OptimConfig(min_dim_to_factor=16, warmup_steps=100),
        data=DataConfig(train=str(corpus), split="0.8,0.2,0"),
        eval=EvalConfig(every=0),
        checkpoint=CheckpointConfig(every=0),
        run=PlaceConfig(dir=str(folder), device="cpu", threads=1, timeout=60.0),
        log=LogConfig(tensorboard=False),
    )


def with_train(config: RunConfig, **train: Any) -> RunConfig:
    """The configuration with other fields of `train`."""
    return replace(config, train=replace(config.train, **train))


def here() -> Place:
    """This forked rank's place."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if size > 1 else 0
    return Place(rank, size, rank, size, torch.device("cpu"))
