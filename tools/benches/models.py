"""The model that the benchmarks train, and its step.

B sequences, S encoder tokens, T decoder tokens.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benches.command_line import Options
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.optim.config import OptimConfig
from megaswitch.params.derive import count as count_parameters
from megaswitch.topology.start import Place
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.step import StepResult, train_step
from megaswitch.train.system import System, build
from megaswitch.utils.errors import UserError
from megaswitch.utils.malloc import keep_freed_memory

ALONE = Place(0, 1, 0, 1, torch.device("cpu"))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FACTOR = 1.25


@dataclass(frozen=True)
class Batch:
    """Random ids without padding (see `data.batch.Batch`)."""

    encoder_ids_BS: NDArray[np.int64]
    decoder_ids_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    samples_B: NDArray[np.int64]
    encoder_segments_BS: None = None
    decoder_segments_BT: None = None


def make_batch(model: ModelConfig, first: int, sequences: int) -> Batch:
    """Samples first .. first + sequences - 1; the decoder's ids are its targets, shifted right."""
    rng = np.random.default_rng(first)
    encoder = rng.integers(2, model.vocab_size, (sequences, model.encoder_length))
    targets = rng.integers(2, model.vocab_size, (sequences, model.decoder_length))
    decoder = np.concatenate([np.zeros((sequences, 1), np.int64), targets[:, :-1]], 1)
    return Batch(encoder, decoder, targets, np.arange(first, first + sequences))


def switch_model(options: Options, experts: int, **more: Any) -> ModelConfig:
    """A Switch Transformer of the size asked for; an expert has 1.25 times its share of a sequence's 512 tokens."""
    width, length = (64, 32) if options.quick else (options.d_model, 512)
    return ModelConfig(
        vocab_size=512 if options.quick else 32128,
        d_model=width,
        d_ff=4 * width,
        d_kv=16 if options.quick else 64,
        num_heads=4 if options.quick else max(1, width // 64),
        num_encoder_layers=2 if options.quick else options.layers,
        num_decoder_layers=2 if options.quick else options.layers,
        num_experts=experts,
        num_sparse_encoder_layers=1 if options.quick else options.layers // 2,
        num_sparse_decoder_layers=1 if options.quick else options.layers // 2,
        encoder_length=length,
        decoder_length=8 if options.quick else 114,
        dropout=options.dropout,
        **{"fixed_capacity": max(4, round(_FACTOR * length / experts)), "route_padding": True, **more},
    )


def dense(model: ModelConfig) -> ModelConfig:
    """The T5 of equal FLOPs: every token passes through one network of the experts' size."""
    return replace(model, num_experts=0, num_sparse_encoder_layers=0, num_sparse_decoder_layers=0, fixed_capacity=None)


def run_config(model: ModelConfig, options: Options) -> RunConfig:
    """One optimizer step over the batch; the keys that were given on the command line come last."""
    batch = 2 if options.quick else options.batch
    train = TrainConfig(
        steps=1_000_000,
        global_batch=batch,
        micro_batch=min(batch, options.micro_batch or batch),
        dtype=options.dtype,
    )
    optim = OptimConfig(name=options.optimizer, lr=1e-4, schedule="constant", warmup_steps=1)
    config = RunConfig(model=model, train=train, optim=optim)
    for text in options.key:
        config = with_key(config, text)
    return config


def with_key(config: Any, text: str) -> Any:
    """A configuration with one more key, as in train.recompute=full."""
    key, _, value = text.partition("=")
    first, _, rest = key.partition(".")
    if not is_dataclass(config) or not hasattr(config, first):
        raise UserError(f"--key {text}: there is no key {first}; `megaswitch train --help` lists them")
    made = with_key(getattr(config, first), f"{rest}={value}") if rest else _value(value)
    return replace(config, **{first: made})  # type: ignore[type-var]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


class Ours:
    """Our system with its weights, and its step over always the same batch."""

    def __init__(self, config: RunConfig) -> None:
        keep_freed_memory()  # as training does; whatever else is measured in this process has it too
        self.config, self.system = config, build(config, ALONE)
        self.batches = batches_of(self.system)
        self._steps = count()

    def step(self, system: System | None = None) -> StepResult:
        """One whole training step (on another view of the system, where one is given)."""
        return train_step(system or self.system, self.batches, next(self._steps))


def batches_of(system: System) -> Sequence[Batch]:
    """This process's micro-batches: every data-parallel rank has other samples."""
    train, first = system.config.train, system.topology.dp.rank * system.sequences
    return [make_batch(system.config.model, first + i * train.micro_batch, train.micro_batch)
            for i in range(system.num_microbatches)]


def tokens_of(config: RunConfig) -> int:
    """Encoder and decoder positions of a step."""
    return config.train.global_batch * (config.model.encoder_length + config.model.decoder_length)


def refuse_too_large(models: Sequence[ModelConfig], bytes_per_parameter: float = 16.0) -> None:
    """UserError where weights, gradients and moments of all models that are measured together would not fit."""
    parameters = sum(count_parameters(param_specs(model).values())["total"] for model in models)
    free = psutil.virtual_memory().available
    if parameters * bytes_per_parameter > 0.9 * free:
        raise UserError(
            f"{parameters / 1e6:.0f} M parameters want {parameters * bytes_per_parameter / 2**30:.1f} GiB with their "
            f"optimizer, and {free / 2**30:.1f} GiB are free; choose fewer --experts or a smaller --d-model"
        )
