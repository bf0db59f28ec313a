"""The whole training step: ours, and a peer's with the same weights and the same batch."""

from dataclasses import replace
from pathlib import Path

from benches.command_line import Options
from benches.models import Ours, dense, refuse_too_large, run_config, switch_model, tokens_of
from benches.report import Row, finish, number, show
from benches.timing import Work, clocked, in_turns, ratio
from megaswitch.model.config import ModelConfig
from megaswitch.utils.errors import UserError

_FAR = {"float32": 1e-3, "bfloat16": 2e-2}
"""By how much two losses of the same weights and batch may differ, relatively."""
_NAMES = {
    "hf-switch": "transformers, SwitchTransformers",
    "hf-t5": "transformers, T5 of equal FLOPs",
    "own-t5": "our own T5 of equal FLOPs",
}


def measure(options: Options) -> None:
    """Prints tokens/s by number of experts."""
    rows = [_row(options, experts) for experts in ([4] if options.quick else options.experts)]
    show(
        ["", "ours, tokens/s", f"{_NAMES[options.peer]}, tokens/s", "times as fast", "dropped"],
        [[r.case, number(r.ours), number(r.peer), number(r.ratio), f"{r.more['dropped']:.1%}"] for r in rows],
    )
    if options.out:
        _draw(options, rows)
    finish(options, rows)


def _draw(options: Options, rows: list[Row]) -> None:
    from benches.plots import bars

    series = {"ours": [r.ours.median for r in rows], _NAMES[options.peer]: [r.peer.median for r in rows if r.peer]}
    path = Path(options.out) / f"step_{options.peer}_{options.dtype}.svg"
    bars(path, f"a training step, {options.dtype}", "tokens/s", [row.case for row in rows], series)


def _row(options: Options, experts: int) -> Row:
    model = _model(options, experts)
    config = run_config(model, options)
    refuse_too_large([model, model if options.peer == "hf-switch" else dense(model)])
    ours = Ours(config)
    theirs = _peer(ours, options)
    dropped = _same_loss(ours, theirs, options) if options.peer == "hf-switch" else ours.step().record.dropped_share
    contenders = {"ours": clocked(ours.step), "peer": clocked(theirs)}
    seconds = in_turns(contenders, 2 if options.quick else options.repeats, options.threads)
    mine, peer, tokens = seconds["ours"], seconds["peer"], tokens_of(config)
    per_expert = config.train.micro_batch * model.encoder_length / experts
    return Row(
        f"{experts} experts",
        mine.per(tokens, "tokens/s"),
        peer.per(tokens, "tokens/s"),
        ratio(mine, peer),
        _NAMES[options.peer],
        {"dropped": dropped, "tokens_an_expert": per_expert, "experts": experts},
    )


def _model(options: Options, experts: int) -> ModelConfig:
    """Beside transformers capacity goes by sequences, as there; beside our own T5 by the whole micro-batch."""
    if options.peer != "own-t5":
        return switch_model(options, experts)
    group = 2 if options.quick else options.micro_batch or options.batch
    return switch_model(options, experts, fixed_capacity=None, group_sequences=group)


def _peer(ours: Ours, options: Options) -> Work:
    config = ours.config
    if options.peer == "own-t5":
        return Ours(replace(config, model=dense(config.model))).step
    if config.train.micro_batch != config.train.global_batch:
        raise UserError("--micro-batch goes with --peer own-t5 alone; transformers takes the whole batch at once")
    from benches import hugging_face  # takes seconds, and is not needed beside our own

    params = ours.system.buckets.params
    if options.peer == "hf-t5":
        equal = replace(config, model=dense(config.model))
        params, config = Ours(equal).system.buckets.params, equal
    made = hugging_face.make_model(params, config.model, options.dtype)
    optimizer = hugging_face.make_optimizer(made.parameters(), options.optimizer)
    return hugging_face.make_step(made, optimizer, ours.batches[0])


def _same_loss(ours: Ours, theirs: Work, options: Options) -> float:
    """A step of each, which warms both: AssertionError unless both computed the same; returns the share dropped."""
    record = ours.step().record
    other = theirs()
    assert isinstance(other, float)
    if options.dropout == 0.0:
        far = abs(record.mean_nll - other) / other
        assert far < _FAR[options.dtype], f"ours has a loss of {record.mean_nll}, the peer of {other}"
    return record.dropped_share


