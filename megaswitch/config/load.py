"""Merges preset, files and command line into one configuration object."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from megaswitch.config.command_line import WHERE, read_arguments
from megaswitch.config.documents import check_table, read_file, to_toml
from megaswitch.config.errors import raise_if_any
from megaswitch.config.nearest import nearest
from megaswitch.config.schema import build

T = TypeVar("T")
PRESET_KEY = "model.preset"


def load(
    root: type[T],
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]],
    argv: Sequence[str],
    prog: str,
    description: str,
) -> T:
    """The configuration that a command line describes.

    Precedence, key by key: defaults of `root` (nested frozen dataclasses), then the preset that `model.preset`
    names on the command line or else in a file, then the files of `--config` in their order, then
    `--section.key=value`. `--print_config` prints the result as TOML and ends the process, `--help` likewise.

    Raises ConfigError for unknown keys, wrong types and an unknown preset, all of them at once, and
    MissingInputError for a file that is not there.
    """
    line = read_arguments(root, argv, prog, description)
    problems = list(line.problems)
    from_files: dict[str, Any] = {}
    source = WHERE
    for path in line.files:
        values, wrong = read_file(root, path)
        from_files |= values
        problems += wrong
        source = path if PRESET_KEY in values and PRESET_KEY not in line.values else source
    given = from_files | line.values
    from_preset, wrong = _preset_values(root, presets, given.get(PRESET_KEY, ""), source)
    raise_if_any(problems + wrong)
    config = build(root, from_preset | given)
    if line.print_config:
        sys.stdout.write(to_toml(config))
        raise SystemExit(0)
    return config


def _preset_values(
    root: type, presets: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str, source: str
) -> tuple[dict[str, Any], list[str]]:
    if not name:
        return {}, []
    if name not in presets:
        found = nearest(name, presets)
        advice = f"did you mean {found}?" if found else "the presets are " + ", ".join(presets)
        return {}, [f"{source}: {PRESET_KEY}: there is no preset {name}; {advice}"]
    return check_table(root, presets[name], f"preset {name}")
