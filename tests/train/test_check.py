"""Everything that is wrong with a configuration: each message, and all of them at once."""

from dataclasses import replace

import pytest

from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.ranges import RANGES
from megaswitch.utils.errors import UserError
from megaswitch.utils.problem import Problem, refuse

TINY = RunConfig(
    model=replace(RunConfig().model, **presets()["switch_tiny"]["model"]),
    train=TrainConfig(**presets()["switch_tiny"]["train"]),
)


def changed(config: RunConfig = TINY, **values) -> RunConfig:
    """With `model__d_ff=3` and the like."""
    for key, value in values.items():
        section, name = key.split("__")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def told(world: int = 1, **values) -> dict[str, str]:
    problems = check(changed(**values), world)
    assert all(p.remedy for p in problems)
    return {p.key: p.message for p in problems}


@pytest.mark.parametrize("preset", presets())
def test_presets_train_in_one_process(preset):
    sections = presets()[preset]
    model = replace(RunConfig().model, **sections["model"])
    assert check(RunConfig(model=model, train=TrainConfig(**sections["train"])), 1) == []


@pytest.mark.parametrize(
    ("world", "layout"),
    [(2, {"tp": 2}), (4, {"tp": 2, "ep": 4}), (8, {"pp": 2, "tp": 2, "ep": 2, "etp": 2}), (8, {"pp": 4, "ep": 2})],
)
def test_layouts_that_work(world, layout):
    assert told(world, **{f"layout__{name}": size for name, size in layout.items()}) == {}


AT_LEAST_1 = [
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
]
AT_LEAST_0 = [
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
]
ABOVE_0 = [
    "model.init_scale",
    "model.router_init_std",
    "model.second_threshold",
    "optim.lr",
    "optim.decay_rate",
    "optim.update_clip",
    "optim.eps",
    "run.timeout",
]
SHARES = ["model.dropout", "model.expert_dropout", "model.router_dropout", "model.jitter", "optim.beta1", "optim.beta2"]
PARTS = ["guard.router_share", "guard.memory_share"]
NAN = float("nan")


@pytest.mark.parametrize(("key", "value"), [*((k, 0) for k in AT_LEAST_1), *((k, -1) for k in AT_LEAST_0)])
def test_numbers_below_their_least_value(key, value):
    assert told(**{key.replace(".", "__"): value}) == {key: f"is {value}"}, "and under no other key"


@pytest.mark.parametrize("key", AT_LEAST_0)
def test_zero_may_be_said(key):
    assert key not in told(**{key.replace(".", "__"): 0})


@pytest.mark.parametrize("key", ABOVE_0)
@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_numbers_that_must_be_above_zero(key, value):
    assert told(**{key.replace(".", "__"): value}) == {key: f"is {value}"}


@pytest.mark.parametrize("key", SHARES)
@pytest.mark.parametrize("value", [-0.1, 1.0, NAN])
def test_shares_that_are_none(key, value):
    assert told(**{key.replace(".", "__"): value}) == {key: f"is {value}"}, "and under no other key"


@pytest.mark.parametrize("key", PARTS)
def test_parts_of_a_whole(key):
    for value in (0.0, 1.5, NAN):
        assert told(**{key.replace(".", "__"): value}) == {key: f"is {value}"}
    assert told(**{key.replace(".", "__"): 1.0}) == {}


def test_every_range_is_tested():
    factors = ("model.capacity_factor", "model.eval_capacity_factor")
    tested = [*AT_LEAST_1, *AT_LEAST_0, *ABOVE_0, *SHARES, *PARTS, *factors]
    assert sorted(key for allowed in RANGES for key in allowed.keys) == sorted(tested)


@pytest.mark.parametrize("values", [{"noise_density": 0.0}, {"noise_density": 1.0}, {"mean_span_length": 0.5}])
def test_shares_of_noise_are_the_datas_own_to_judge(values):
    (problem,) = check(changed(**{f"data__{name}": value for name, value in values.items()}), 1)
    assert problem.key == "data.noise_density"
    assert "data.mean_span_length be 1 or more" in problem.message


def test_too_short_to_mask():
    (problem,) = check(changed(model__encoder_length=3), 1)
    assert problem.key == "model.encoder_length" and "too short to mask a span" in problem.message


def test_choices_are_the_types_own():
    with pytest.raises(UserError, match=r'data_mismatch.*one of "refuse", "accept"'):
        load(RunConfig, presets(), ["--checkpoint.data_mismatch=ignore"], "megaswitch train", "")


@pytest.mark.parametrize("key", ["model.capacity_factor", "model.eval_capacity_factor"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_capacity_factors(key, value):
    assert told(**{key.replace(".", "__"): value}) == {key: f"is {value}"}
    assert told(**{key.replace(".", "__"): None}) == {}


SPANNING = {
    "more sparse layers than layers": (
        1,
        {"model__num_sparse_encoder_layers": 5},
        {"model.num_sparse_encoder_layers": "is 5"},
    ),
    "fewer than none": (1, {"model__num_sparse_decoder_layers": -1}, {"model.num_sparse_decoder_layers": "is -1"}),
    "experts without a layer": (
        1,
        {"model__num_sparse_encoder_layers": 0, "model__num_sparse_decoder_layers": 0},
        {"model.num_experts": "is 8, but no layer is sparse"},
    ),
    "world": (3, {"layout__tp": 2}, {"layout": "3 processes cannot be divided by pp x tp = 1 x 2 = 2"}),
    "an empty stage": (
        8,
        {"layout__pp": 8},
        {"layout.pp": "leaves a stage empty: decoder has 4 blocks for 8 stages"},
    ),
    "heads": (
        3,
        {"layout__tp": 3, "model__d_ff": 129, "train__global_batch": 15},
        {"layout.tp": "= 3 does not divide model.num_heads = 4"},
    ),
    "d_ff": (2, {"layout__tp": 2, "model__d_ff": 127}, {"layout.tp": "= 2 does not divide model.d_ff = 127"}),
    "d_ff of experts": (
        2,
        {"layout__tp": 2, "layout__etp": 2, "model__d_ff": 127},
        {"layout.tp": "= 2 does not divide model.d_ff = 127", "layout.etp": "= 2 does not divide model.d_ff = 127"},
    ),
    "experts": (
        3,
        {"layout__ep": 3, "train__global_batch": 15},
        {"layout.ep": "= 3 does not divide model.num_experts = 8"},
    ),
    "vocabulary": (4, {"layout__tp": 4, "model__vocab_size": 3}, {"layout.tp": "is larger than model.vocab_size = 3"}),
    "ep of a dense model": (
        2,
        {"layout__ep": 2, "model__num_experts": 0},
        {"layout.ep": "is 2, but the model has no experts"},
    ),
    "group of the encoder": (
        1,
        {"model__group_sequences": 2, "model__decoder_group_sequences": 1},
        {"train.micro_batch": "= 1 is not a multiple of the encoder's routing group of 2 sequences"},
    ),
    "group of the decoder": (
        1,
        {"model__decoder_group_sequences": 4, "train__micro_batch": 2},
        {"train.micro_batch": "= 2 is not a multiple of the decoder's routing group of 4 sequences"},
    ),
    "global batch": (
        3,
        {},
        {"train.global_batch": "= 16 is not a multiple of dp x train.micro_batch = 3 x 1"},
    ),
    "too small a batch": (
        4,
        {"train__micro_batch": 8},
        {"train.global_batch": "= 16 is not a multiple of dp x train.micro_batch = 4 x 8"},
    ),
    "decoder too short": (
        1,
        {"model__decoder_length": 13},
        {"model.decoder_length": "= 13 is too short for the targets of 64 encoder tokens"},
    ),
    "nothing to mask": (1, {"data__noise_density": 2.0}, {"data.noise_density": None}),
}


@pytest.mark.parametrize("case", SPANNING)
def test_what_spans_fields(case):
    world, values, expected = SPANNING[case]
    found = told(world, **values)
    assert found.keys() == expected.keys()
    for key, message in expected.items():
        assert message is None or found[key].startswith(message)


def test_a_dense_model_needs_no_groups():
    assert told(model__num_experts=0, model__group_sequences=3) == {}


def test_remedies_say_what_would_do():
    by_key = {p.key: p.remedy for p in check(changed(model__decoder_length=13), 1)}
    assert by_key["model.decoder_length"].startswith("give 14")
    (problem,) = check(changed(layout__ep=3, train__global_batch=15), 3)
    assert "(1, 2, 4, 8)" in problem.remedy
    (problem,) = check(changed(train__micro_batch=8), 4)
    assert "multiple of 32" in problem.remedy and "model.group_sequences" in problem.remedy


def test_all_problems_are_told_at_once():
    ranges = told(3, model__d_ff=0, train__steps=0, layout__tp=2, model__jitter=2.0)
    assert ranges.keys() == {"model.d_ff", "train.steps", "layout", "model.jitter"}
    spanning = check(
        changed(layout__pp=8, layout__tp=3, layout__ep=3, model__decoder_length=13, train__micro_batch=3), 24
    )
    assert {p.key for p in spanning} == {
        "layout.pp",
        "layout.tp",
        "layout.ep",
        "train.global_batch",
        "model.decoder_length",
    }
    with pytest.raises(UserError) as caught:
        refuse(spanning)
    assert str(caught.value).startswith(f"the configuration has {len(spanning)} problems:")
    assert all(str(p) in str(caught.value) for p in spanning)
    assert caught.value.exit_code == 64


def test_nothing_is_refused_when_nothing_is_wrong():
    refuse([])
    with pytest.raises(UserError, match=r"1 problem:\n  - a\.b: is wrong; mend it$"):
        refuse([Problem("a.b", "is wrong", "mend it")])
