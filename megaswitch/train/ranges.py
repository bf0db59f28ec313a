"""Which numbers of a configuration mean something: one table of keys and ranges."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megaswitch.config.schema import flatten
from megaswitch.train.config import RunConfig
from megaswitch.utils.problem import Problem


@dataclass(frozen=True)
class _Range:
    """Keys (dotted) whose numbers must be inside; a key that is None was not given and is not looked at."""

    inside: Callable[[float], bool]
    remedy: str
    keys: tuple[str, ...]


_AT_LEAST_1 = _Range(
    lambda number: number >= 1,
    "give at least 1",
    (
        "model.vocab_size",
        "model.d_model",
        "model.d_ff",
        "model.d_kv",
        "model.num_heads",
        "model.num_encoder_layers",
        "model.num_decoder_layers",
        "model.encoder_length",
        "model.decoder_length",
        "model.group_sequences",
        "model.decoder_group_sequences",
        "model.router_choices",
        "model.fixed_capacity",
        "train.steps",
        "train.global_batch",
        "train.micro_batch",
        "optim.min_dim_to_factor",
        "optim.bucket_elements",
        "log.every",
        "guard.nonfinite_limit",
        "guard.spike_window",
        "guard.spike_rewinds",
        "guard.straggler_factor",
    ),
)
_AT_LEAST_0 = _Range(
    lambda number: number >= 0,
    "give 0 or more",
    (
        "model.num_experts",
        "model.min_capacity",
        "model.aux_loss_coef",
        "model.router_z_loss_coef",
        "model.z_loss",
        "train.stop_after",
        "optim.clip",
        "optim.warmup_steps",
        "optim.weight_decay",
        "eval.every",
        "eval.batches",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.keep_every",
        "checkpoint.keep_best",
        "data.temperature",
        "data.threads",
        "run.threads",
        "log.images_every",
        "guard.spike_factor",
        "guard.hang",
        "guard.replicas_every",
        "guard.stragglers_every",
        "guard.grace",
    ),
)
_ABOVE_0 = _Range(
    lambda number: number > 0,
    "give a number above 0",
    (
        "model.init_scale",
        "model.router_init_std",
        "model.second_threshold",
        "optim.lr",
        "optim.decay_rate",
        "optim.update_clip",
        "optim.eps",
        "run.timeout",
    ),
)
_SHARES = _Range(
    lambda number: 0 <= number < 1,
    "give a number from 0 up to, but not including, 1",
    ("model.dropout", "model.expert_dropout", "model.router_dropout", "model.jitter", "optim.beta1", "optim.beta2"),
)
_FACTORS = _Range(
    lambda number: number > 0,
    "give a number above 0, or none to drop nothing",
    ("model.capacity_factor", "model.eval_capacity_factor"),
)
_PARTS = _Range(
    lambda number: 0 < number <= 1,
    "give a number above 0, and at most 1",
    ("guard.router_share", "guard.memory_share"),
)
RANGES = (_AT_LEAST_1, _AT_LEAST_0, _ABOVE_0, _SHARES, _FACTORS, _PARTS)


def range_problems(config: RunConfig) -> Iterator[Problem]:
    """Numbers that mean nothing outside a range, NaN among them."""
    values = flatten(config)
    for allowed in RANGES:
        for key in allowed.keys:
            number = values[key]
            if number is not None and not allowed.inside(number):
                yield Problem(key, f"is {number}", allowed.remedy)
