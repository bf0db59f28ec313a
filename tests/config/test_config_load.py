"""Precedence, strings that look like something else, and messages that help."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from megaswitch.config.errors import ConfigError
from megaswitch.config.load import load
from megaswitch.utils.errors import MissingInputError


@dataclass(frozen=True)
class ModelConfig:
    """The model.

    Args:
        preset: where values come from.
        width: how wide; 100% an integer.
    """

    preset: str = ""
    width: int = 1
    depth: int = 1
    rate: float | None = 0.5
    tied: bool = True
    kind: Literal["relu", "geglu"] = "relu"


@dataclass(frozen=True)
class RunConfig:
    """A run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    place: str = ""


PRESETS = {"small": {"model": {"width": 2, "depth": 2, "rate": None}}, "large": {"model": {"width": 9, "depth": 9}}}


def run(*argv):
    return load(RunConfig, PRESETS, argv, "prog", "Runs.")


def problems(*argv):
    with pytest.raises(ConfigError) as caught:
        run(*argv)
    assert caught.value.exit_code == 64
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return list(caught.value.problems)


@pytest.fixture
def file(tmp_path):
    def write(text, name="f.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_defaults_alone():
    assert run() == RunConfig()


def test_precedence_is_preset_file_command_line_key_by_key(file):
    first = file('place = "a"\n[model]\npreset = "small"\ndepth = 3\n')
    second = file("[model]\ndepth = 4\nrate = 0.25\n", "g.toml")
    assert run("--config", first).model == ModelConfig("small", 2, 3, None)
    assert run("--config", first, f"--config={second}").model == ModelConfig("small", 2, 4, 0.25)
    assert run(f"--config={second}", "--config", first).model == ModelConfig("small", 2, 3, 0.25)
    assert run("--model.depth=5", "--config", first, "--model.depth", "6").model.depth == 6
    assert run("--config", first).place == "a"


def test_the_command_lines_preset_replaces_the_files(file):
    path = file('[model]\npreset = "small"\n')
    assert run("--config", path, "--model.preset=large").model == ModelConfig("large", 9, 9, 0.5)


TRAPS = ["1e-3", "007", "0.7:P1,0.3:P2", "null", "none", "[1, 2]", "{a: 1}", "yes", " ", "", "-1"]


@pytest.mark.parametrize("text", TRAPS)
def test_text_stays_text(text):
    assert run(f"--place={text}").place == text


@pytest.mark.parametrize("word", ["none", "null", "None"])
def test_null_on_the_command_line(word):
    assert run(f"--model.rate={word}").model.rate is None


def test_null_in_a_file(file):
    assert run("--config", file('[model]\nrate = "none"\n')).model.rate is None


def test_values_of_each_type():
    model = run("--model.width", "-12", "--model.rate=1e-3", "--model.tied=False", "--model.kind=geglu").model
    assert model == ModelConfig(width=-12, rate=1e-3, tied=False, kind="geglu")
    assert run("--model.rate=2").model.rate == 2.0
    assert run("--model.width=1_000").model.width == 1000


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--model.widht=3", ["model.widht", "did you mean model.width?"]),
        ("--width=3", ["width", "did you mean model.width?"]),
        ("--modle.width=3", ["modle.width", "did you mean model.width?"]),
        ("--place.width=3", ["place.width", "did you mean model.width?"]),
        ("--mode=3", ["no key mode"]),
        ("--zzz=3", ["no key zzz", "--help"]),
        ("--model=3", ["model is a section"]),
        ("--model.width", ["--model.width needs a value"]),
        ("model.width=3", ["'model.width=3'", "write --model.width=value"]),
        ("-x", ["'-x' is no argument"]),
        ("--print_config=1", ["takes no value"]),
        ("--confg=f", ["did you mean config?"]),
        ("--model.width=1.0", ["--model.width=1.0", "a whole number"]),
        ("--model.width=1e3", ["a whole number"]),
        ("--model.width=99999999999999999999", ["a whole number"]),
        ("--model.width=none", ["a whole number"]),
        ("--model.rate=x", ['a number or "none"']),
        ("--model.rate=nan", ["a number"]),
        ("--model.rate=1e999", ["a number"]),
        ("--model.tied=1", ["true or false"]),
        ("--model.tied=no", ["true or false"]),
        ("--model.kind=gelu", ['one of "relu", "geglu"']),
        ("--model.preset=smal", ["no preset smal", "did you mean small?"]),
        ("--model.preset=x", ["the presets are small, large"]),
        ("--place=\udcff", ["UTF-8"]),
    ],
)
def test_one_wrong_argument(argument, told):
    (problem,) = problems(argument)
    assert problem.startswith("command line: ")
    for part in told:
        assert part in problem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[model]\nwidht = 3", ["no key model.widht", "did you mean model.width?"]),
        ("[modle]\nwidth = 3", ["no key modle.width", "did you mean model.width?"]),
        ("model = 3", ["model is a table of keys"]),
        ("[place]\na = 1", ["place = a table should be text"]),
        ("place.a.b.c.d = 1", ["place = a table should be text"]),
        ("[model]\nwidth = 1.0", ["model.width = 1.0", "a whole number"]),
        ('[model]\nwidth = "1"', ['model.width = "1"']),
        ("[model]\nwidth = true", ["model.width = true"]),
        ("[model]\nwidth = 9223372036854775808", ["model.width", "a whole number"]),
        ("[model]\nrate = nan", ["model.rate"]),
        ("[model]\nrate = -inf", ["model.rate"]),
        ("[model]\nrate = false", ["model.rate = false"]),
        ("[model]\ntied = 1", ["model.tied = 1", "true or false"]),
        ("place = [1]", ["place = a list"]),
        ("place = 1979-05-27", ["place", "text"]),
        ('[model]\npreset = "x"', ["no preset x"]),
        ("\na = = 1", ["not valid TOML", "line 2"]),
        ("a = 1\na = 2", ["not valid TOML"]),
        (b"a = '\xff'", ["not UTF-8"]),
        ("a=" + "[" * 100_000, ["not valid TOML"]),
        (".".join(["a"] * 2_000) + " = 1", ["no key a.a"]),
        ("model.width." + ".".join(["a"] * 2_000) + " = 1", ["model.width = a table"]),
        ("a = " + "1" * 10_000, ["not valid TOML"]),
        ("#" * (1 << 21), ["larger than"]),
    ],
)
def test_one_wrong_thing_in_a_file(file, text, told):
    path = file(text)
    (problem,) = problems("--config", path)
    assert problem.startswith(path + ": ")
    assert len(problem) < 1000
    for part in told:
        assert part in problem


def test_all_problems_are_told_at_once(file):
    first, second = file("[model]\nwidht = 3\ndepth = 'x'\n"), file("[model]\nrates = 1\n", "g.toml")
    found = problems("--config", first, "--config", second, "--model.kind=x", "--depht=1", "stray", "--model.preset=y")
    assert len(found) == 7
    assert [p.split(": ")[0] for p in found].count("command line") == 4


def test_thousands_of_problems_make_a_short_message(file):
    with pytest.raises(ConfigError, match="and 4960 more") as caught:
        run("--config", file("".join(f"k{i} = 1\n" for i in range(5000))))
    assert len(caught.value.problems) == 5000


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInputError, match=r"no\.toml"):
        run("--config", str(tmp_path / "no.toml"))
    with pytest.raises(MissingInputError, match="directory"):
        run("--config", str(tmp_path))


def test_help_explains_every_key_and_ends(capsys):
    with pytest.raises(SystemExit) as end:
        run("--wrong", "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    parts = ["--model.width INT", "how wide; 100% an integer. (default: 1)", "true|false", "relu|geglu", "example:"]
    assert all(part in text for part in parts)


def test_print_config_prints_what_can_be_loaded(capsys, file):
    with pytest.raises(SystemExit) as end:
        run("--print_config", "--model.preset=small", "--place=a\"b\n\x7f")
    assert end.value.code == 0
    assert run("--config", file(capsys.readouterr().out)) == run("--model.preset=small", "--place=a\"b\n\x7f")


def test_print_config_of_a_wrong_configuration_is_an_error():
    assert problems("--print_config", "--wrong=1")


def test_the_real_configuration_needs_no_torch():
    program = """
import sys
from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.train.config import RunConfig
config = load(RunConfig, presets(), ["--model.preset=switch_tiny", "--layout.ep=2"], "megaswitch train", "Trains.")
assert config.model.num_experts == 8 and config.layout.ep == 2
try:
    load(RunConfig, presets(), ["--help"], "megaswitch train", "Trains.")
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--layout.ep INT" in done.stdout
