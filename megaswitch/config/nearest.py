"""Which valid key a wrong one was most likely meant to be."""

import difflib
from collections.abc import Collection

_LONGEST = 100
"""Characters of a name that are compared and shown."""


def unknown_key(name: str, valid: Collection[str], where: str) -> str:
    """The line of a message that names a wrong key, where it stood, and what to write instead."""
    name = name if len(name) <= _LONGEST else name[:_LONGEST] + "..."
    found = nearest(name, valid)
    advice = f"did you mean {found}?" if found else "no key is like it; --help lists all of them"
    return f"{where}: there is no key {name}; {advice}"


def nearest(name: str, valid: Collection[str]) -> str:
    """The valid dotted name closest to `name`; empty when none is close.

    A right key in a wrong section (or without one) is meant for its own section, so the last part alone
    is compared before whole names are.
    """
    last = _last(name)
    same_last = [key for key in valid if _last(key) == last]
    if same_last:
        return difflib.get_close_matches(name, same_last, 1, 0.0)[0]
    if close := difflib.get_close_matches(name, valid, 1, 0.75):
        return close[0]
    close = difflib.get_close_matches(last, {_last(key) for key in valid}, 1, 0.75)
    return next((key for key in valid if close and _last(key) == close[0]), "")


def _last(name: str) -> str:
    return name.rpartition(".")[2]
