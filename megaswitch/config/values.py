"""The types that a configuration key may have, and how text and TOML or JSON values become them.

Nothing is guessed from how a value looks: the key's type alone decides. TOML has no null, so the word
"none" (or "null") stands for it wherever a key may be None, in files and on the command line alike.
"""

import math
import re
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from megaswitch.config.errors import BadValueError

NULL = "none"
NULL_WORDS = ("none", "null")
BOOLS = {"true": True, "false": False}
_INT = re.compile(r"[+-]?\d+(_\d+)*", re.ASCII)
_FLOAT = re.compile(r"[+-]?((\d+(_\d+)*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MOST_DIGITS = 300
"""Longer numbers are no settings, and Python refuses to read an int of more than some thousands."""
_LARGEST = 2**63 - 1
"""TOML and JSON readers promise no larger whole numbers."""


@dataclass(frozen=True)
class ValueType:
    """The type of one key.

    Args:
        base: bool, int, float or str.
        optional: whether None is allowed.
        choices: the only values allowed; empty for any of the base type.
    """

    base: type
    optional: bool = False
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For messages: what to write."""
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        text = "one of " + ", ".join(f'"{c}"' for c in self.choices) if self.choices else names[self.base]
        return f'{text} or "{NULL}"' if self.optional else text

    @property
    def metavar(self) -> str:
        """For the help."""
        names = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT"}
        text = "|".join(self.choices) or names[self.base]
        return f"{text}|{NULL}" if self.optional else text


def value_type(hint: Any) -> ValueType:
    """The `ValueType` of an annotation: bool, int, float, str, Literal of strings, or one of them or None.

    TypeError for any other, which is an error of ours.
    """
    if get_origin(hint) in (Union, UnionType):
        rest = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(rest) == 1 and len(get_args(hint)) == 2:
            inner = value_type(rest[0])
            if inner.base is str and (not inner.choices or set(inner.choices) & set(NULL_WORDS)):
                raise TypeError(f'{hint}: the text "{NULL}" could not be told from None')
            return ValueType(inner.base, optional=True, choices=inner.choices)
    if get_origin(hint) is Literal and all(isinstance(arg, str) for arg in get_args(hint)):
        return ValueType(str, choices=get_args(hint))
    if hint in (bool, int, float, str):
        return ValueType(hint)
    raise TypeError(f"{hint} is no type of a configuration key")


def from_text(text: str, wanted: ValueType) -> Any:
    """A value from the command line; BadValueError says what was expected."""
    if wanted.optional and text.lower() in NULL_WORDS:
        return None
    if wanted.base is str:
        return _chosen(text, wanted)
    if wanted.base is bool:
        if text.lower() in BOOLS:
            return BOOLS[text.lower()]
    elif len(text) <= _MOST_DIGITS and (_INT if wanted.base is int else _FLOAT).fullmatch(text):
        return from_data(wanted.base(text), wanted)
    raise BadValueError(str(wanted))


def from_data(value: object, wanted: ValueType) -> Any:
    """A value from a TOML or JSON document; BadValueError says what was expected.

    An integer is a number too; nothing else is converted: 1.0 is no whole number, "1" is none, true is none.
    """
    if wanted.optional and (value is None or value in NULL_WORDS):
        return None
    if wanted.base is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _as_float(value, wanted)
    if type(value) is not wanted.base or (isinstance(value, int) and not -_LARGEST <= value <= _LARGEST):
        raise BadValueError(str(wanted))
    return _chosen(value, wanted) if isinstance(value, str) else value


def _chosen(text: str, wanted: ValueType) -> str:
    if wanted.choices and text not in wanted.choices:
        raise BadValueError(str(wanted))
    try:
        text.encode()  # an argument of the command line may hold bytes that are no text
    except UnicodeEncodeError:
        raise BadValueError("text in UTF-8") from None
    return text


def _as_float(value: float, wanted: ValueType) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise BadValueError(str(wanted)) from None
    if not math.isfinite(number):  # a NaN equals nothing, itself included, and JSON has neither
        raise BadValueError(str(wanted))
    return number
