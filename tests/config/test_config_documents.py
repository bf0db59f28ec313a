"""Configurations survive TOML and JSON unchanged, and nothing strange in either is taken."""

import json
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megaswitch.config.documents import from_dict, to_dict, to_toml
from megaswitch.config.errors import ConfigError
from megaswitch.config.load import load
from megaswitch.config.schema import flatten, leaves
from megaswitch.config.values import ValueType
from megaswitch.model.presets import presets
from megaswitch.train.config import RunConfig

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def values_of(kind: ValueType) -> st.SearchStrategy[Any]:
    bases = {
        bool: st.booleans(),
        int: st.integers(-(2**63) + 1, 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.sampled_from(kind.choices) if kind.choices else TEXTS,
    }
    return st.none() | bases[kind.base] if kind.optional else bases[kind.base]


@st.composite
def configs(draw, root=RunConfig, prefix=""):
    keys = leaves(RunConfig)
    changes = {}
    for f in fields(root):
        hint, name = get_type_hints(root)[f.name], prefix + f.name
        if is_dataclass(hint):
            changes[f.name] = draw(configs(hint, name + "."))
        elif name == "model.preset":
            changes[f.name] = draw(st.sampled_from(["", *presets()]))
        elif draw(st.booleans()):
            changes[f.name] = draw(values_of(keys[name].kind))
    return replace(root(), **changes)


@given(configs())
def test_toml_round_trip(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_bytes(to_toml(config).encode())
    assert load(RunConfig, presets(), ["--config", str(path)], "prog", "") == config


@given(configs())
def test_json_round_trip(config):
    text = json.dumps(to_dict(config))
    assert from_dict(RunConfig, json.loads(text), "state") == config


@given(configs())
def test_command_line_round_trip(config):
    assume("--" not in flatten(config).values())  # no value on a command line; see the next test

    def text(value):
        return "none" if value is None else str(value)

    argv = [f"--{name}={text(value)}" for name, value in flatten(config).items()]
    assert load(RunConfig, presets(), argv, "prog", "") == config


def test_a_lone_dash_dash_is_no_value():
    with pytest.raises(ConfigError, match=r"--run.dir needs a value"):
        load(RunConfig, presets(), ["--run.dir=--"], "prog", "")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["model", "train", "d_ff"]), inner),
)


@given(JUNK)
def test_junk_is_a_config_error_or_a_config(data):
    try:
        from_dict(RunConfig, data, "state", complete=False)
    except ConfigError as error:
        assert error.problems


def test_incomplete_dictionaries():
    data = to_dict(RunConfig())
    del data["train"]["steps"], data["log"]
    with pytest.raises(ConfigError) as caught:
        from_dict(RunConfig, data, "checkpoint")
    assert caught.value.problems[0] == "checkpoint: the key train.steps is missing"
    assert len(caught.value.problems) == 4
    assert from_dict(RunConfig, data, "checkpoint", complete=False) == RunConfig()


def test_every_preset_is_valid():
    for name, preset in presets().items():
        assert from_dict(RunConfig, preset, name, complete=False).model.d_model > 0
