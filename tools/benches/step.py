"""The whole training step: ours, and a peer's with the same weights and the same batch.

transformers' runs in a process of its own, which has none of our process's settings of malloc.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from benches.command_line import Options
from benches.crew import Crew, crew
from benches.models import Ours, dense, refuse_too_large, run_config, switch_model, tokens_of
from benches.report import Row, finish, number, show
from benches.timing import SETTLED, clocked, in_turns, ratio
from megaswitch.model.config import ModelConfig
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import UserError

_FAR = {"float32": 1e-3, "bfloat16": 2e-2}
"""By how much two losses of the same weights and batch may differ, relatively."""
_NAMES = {
    "hf-switch": "transformers, SwitchTransformers",
    "hf-t5": "transformers, T5 of equal FLOPs",
    "own-t5": "our own T5 of equal FLOPs",
}
_PRECISIONS = {None: "", "autocast": ", bfloat16 by autocast", "bfloat16": ", all bfloat16"}


def measure(options: Options) -> None:
    """Prints tokens/s by number of experts."""
    narrow = options.peer != "own-t5" and options.dtype == "bfloat16"
    if options.peer_precision and not narrow:
        raise UserError("--peer-precision goes with --dtype bfloat16 beside transformers alone")
    if narrow:
        options.peer_precision = options.peer_precision or "autocast"
    rows = [_row(options, experts) for experts in ([4] if options.quick else options.experts)]
    show(
        ["", "ours, tokens/s", f"{_name(options)}, tokens/s", "times as fast", "dropped"],
        [[r.case, number(r.ours), number(r.peer), number(r.ratio), f"{r.more['dropped']:.1%}"] for r in rows],
    )
    if options.out:
        _draw(options, rows)
    finish(options, rows)


def _name(options: Options) -> str:
    kept = ", freed memory kept" if options.peer_keeps_memory else ""
    return _NAMES[options.peer] + _PRECISIONS[options.peer_precision] + kept


def _draw(options: Options, rows: list[Row]) -> None:
    from benches.plots import bars

    series = {"ours": [r.ours.median for r in rows], _name(options): [r.peer.median for r in rows if r.peer]}
    path = Path(options.out) / f"step_{options.peer}_{options.dtype}.svg"
    bars(path, f"a training step, {options.dtype}", "tokens/s", [row.case for row in rows], series)


def _row(options: Options, experts: int) -> Row:
    model = _model(options, experts)
    config = run_config(model, options)
    equal = config if options.peer == "hf-switch" else replace(config, model=dense(model))
    refuse_too_large([model, equal.model])
    ours = Ours(config)
    with ExitStack() as stack:
        other = None if options.peer == "own-t5" else stack.enter_context(_transformers(ours, equal, options))
        theirs = other.once if other else clocked(Ours(equal).step)
        record = ours.step().record
        theirs()
        if other and options.peer == "hf-switch" and options.dropout == 0.0:
            _compare(record.mean_nll, other.results[0], options.dtype)
        contenders = {"ours": clocked(ours.step), "peer": theirs}
        rounds = (2, options.threads, 1) if options.quick else (options.repeats, options.threads, SETTLED)
        seconds = in_turns(contenders, *rounds)
    mine, peer, tokens = seconds["ours"], seconds["peer"], tokens_of(config)
    per_expert = config.train.micro_batch * model.encoder_length / experts
    return Row(
        f"{experts} experts",
        mine.per(tokens, "tokens/s"),
        peer.per(tokens, "tokens/s"),
        ratio(mine, peer),
        _name(options),
        {"dropped": record.dropped_share, "tokens_an_expert": per_expert, "experts": experts},
    )


def _model(options: Options, experts: int) -> ModelConfig:
    """Beside transformers capacity goes by sequences, as there; beside our own T5 by the whole micro-batch."""
    if options.peer != "own-t5":
        return switch_model(options, experts)
    group = 2 if options.quick else options.micro_batch or options.batch
    return switch_model(options, experts, fixed_capacity=None, group_sequences=group)


@contextmanager
def _transformers(ours: Ours, config: RunConfig, options: Options) -> Iterator[Crew]:
    """A process of its own whose round is transformers' step, over our weights and our batch."""
    if config.train.micro_batch != config.train.global_batch:
        raise UserError("--micro-batch goes with --peer own-t5 alone; transformers takes the whole batch at once")
    from benches import hugging_face  # takes seconds, and is not needed beside our own

    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file({**(ours if config is ours.config else Ours(config)).system.buckets.params}, weights)
        make = partial(hugging_face.make_step, weights, config.model, ours.batches[0], options)
        with crew(1, make, options.threads, fork=False) as peer:
            yield peer


def _compare(ours: float, other: float, dtype: str) -> None:
    """AssertionError unless both computed the same loss."""
    assert abs(ours - other) < _FAR[dtype] * other, f"ours has a loss of {ours}, the peer of {other}"
