"""The command line `--config F.toml --a.b=value --a.b value`: its parser, its help, its values."""

import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

from megaswitch.config.errors import BadValueError
from megaswitch.config.nearest import nearest, unknown_key
from megaswitch.config.schema import Leaf, leaves, sections
from megaswitch.config.values import NULL, from_text

WHERE = "command line"
_PRINT = "--print_config"
_HELP = ("--help", "-h")


@dataclass(frozen=True)
class CommandLine:
    """What a command line says.

    Args:
        files: configuration files, in order.
        values: values by dotted name.
        print_config: whether the complete configuration is to be printed instead of used.
        problems: a line for each wrong argument.
    """

    files: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    print_config: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Text:
    """An argument of jsonargparse that keeps its text as it stands (the parser calls its type more than once)."""

    text: str

    @classmethod
    def read(cls, given: "str | Text") -> "Text":
        """The identity on a `Text`."""
        return given if isinstance(given, Text) else cls(given)


def make_parser(root: type, prog: str, description: str) -> ArgumentParser:
    """The parser of a configuration's keys; its help is taken from the dataclasses' docstrings."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config F.toml ...] [--section.key=value ...]",
        description=description,
        epilog=_epilog(prog),
        formatter_class=RawDescriptionHelpFormatter,
        default_env=False,
    )
    files = "a configuration file; may be repeated, later files win"
    parser.add_argument("--config", action="append", type=Text.read, metavar="F.toml", help=files)
    parser.add_argument(_PRINT, action="store_true", help="print the complete configuration as TOML and end")
    for section, owner in sections(root).items():
        _add_section(parser, section, owner, [leaf for leaf in leaves(root).values() if leaf.section == section])
    return parser


def read_arguments(root: type, argv: Sequence[str], prog: str, description: str) -> CommandLine:
    """Everything the command line says; `--help` prints the help and ends the process (SystemExit 0).

    Nothing is raised for wrong arguments: they are among the problems.
    """
    keys = leaves(root)
    arguments, problems = _tidy(argv, keys)
    parsed = make_parser(root, prog, description).parse_args(arguments)
    values: dict[str, Any] = {}
    for name, leaf in keys.items():
        given = parsed.get(name)
        if given is None:
            continue
        try:
            values[name] = from_text(given.text, leaf.kind)
        except BadValueError as bad:
            problems.append(f"{WHERE}: --{name}={given.text} should be {bad.expected}")
    files = tuple(given.text for given in parsed.get("config") or ())
    return CommandLine(files, values, _PRINT in argv, problems)


def _add_section(parser: ArgumentParser, section: str, owner: type, keys: Sequence[Leaf]) -> None:
    explained = docstring_parser.parse_from_object(owner)
    help_of = {param.arg_name: param.description or "" for param in explained.params}
    group = parser.add_argument_group(section, explained.short_description) if section else parser
    for leaf in keys:
        text = _help_line(leaf, help_of.get(leaf.name.rpartition(".")[2], ""))
        group.add_argument(f"--{leaf.name}", type=Text.read, metavar=leaf.kind.metavar, help=text)


def _tidy(argv: Sequence[str], keys: Collection[str]) -> tuple[list[str], list[str]]:
    """Arguments as `--key=value` alone, which the parser cannot refuse, and a line for each that is none."""
    tidy: list[str] = []
    problems: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, has_value, value = argument.removeprefix("--").partition("=")
        if argument == _PRINT:  # jsonargparse would answer it in its own way
            continue
        if argument in _HELP:
            tidy.append(argument)
            continue
        if not argument.startswith("--"):
            problems.append(_stray(argument, keys))
            continue
        if not has_value and rest and not rest[0].startswith("--"):
            argument, has_value = f"{argument}={rest.pop(0)}", "="
        if name != "config" and name not in keys:
            problems.append(_unknown(name, keys))
        elif not has_value or value == "--":  # argparse takes a lone "--" for its own mark
            problems.append(f"{WHERE}: --{name} needs a value: --{name}=...")
        else:
            tidy.append(argument)
    return tidy, problems


def _unknown(name: str, keys: Collection[str]) -> str:
    known = [*keys, "config", "print_config"]
    if name in ("print_config", "help"):
        return f"{WHERE}: --{name} takes no value"
    if any(key.startswith(name + ".") for key in keys):
        return f"{WHERE}: {name} is a section, not a key; write --{name}.KEY=value (--help lists the keys)"
    return unknown_key(name, known, WHERE)


def _stray(argument: str, keys: Collection[str]) -> str:
    name = re.split("[ =]", argument.lstrip("-"))[0]
    found = nearest(name, keys) if name else ""
    advice = f"write --{found}=value" if found else "settings are written --section.key=value"
    return f"{WHERE}: {argument!r} is no argument; {advice}"


def _help_line(leaf: Leaf, text: str) -> str:
    default = NULL if leaf.default is None else str(leaf.default).lower() if leaf.kind.base is bool else leaf.default
    explained = " ".join(dedent(text).split())
    shown = '""' if default == "" else default
    return f"{explained} (default: {shown})".strip().replace("%", "%%")


def _epilog(prog: str) -> str:
    return (
        f"A preset comes first, then files in their order, then the command line, key by key. `{NULL}` is no value.\n"
        f"example:\n  {prog} --config launch/configs/X.toml --train.steps=1000 --optim.clip=1.0"
    )
