"""Which documents are wanted, by the other fields of their records: `--where`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from megaswitch.utils.errors import UserError

_CONDITION = re.compile(r"([^!<>=]+)(!=|<=|>=|=)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """One `--where`."""

    field: str
    sign: str
    value: str

    def holds(self, record: dict[str, Any]) -> bool:
        """Whether a record fulfils it; a record without the field does for `!=` alone."""
        found = field_of(record, self.field)
        if self.sign in ("<=", ">="):
            if not isinstance(found, int | float):
                return False
            return found <= float(self.value) if self.sign == "<=" else found >= float(self.value)
        text = found if isinstance(found, str) else orjson.dumps(found).decode() if found is not None else ""
        return (text in self.value.split(",")) == (self.sign == "=")


def conditions(where: tuple[str, ...]) -> list[Condition]:
    """The conditions as given; UserError for one that cannot be understood."""
    found = []
    for text in where:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UserError(f"--where {text!r} is no condition; write lang=de,fr or score>=0.5 or licence!=unknown")
        condition = Condition(*match.groups())
        if condition.sign in ("<=", ">="):
            try:
                float(condition.value)
            except ValueError:
                raise UserError(f"--where {text!r}: {condition.value!r} is no number") from None
        found.append(condition)
    return found


def field_of(record: dict[str, Any], name: str) -> Any:
    """The value of a field, `a.b` of an object within; None where there is none."""
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first) if dot else None
    return field_of(inner, rest) if isinstance(inner, dict) else None
