"""What is wrong with a configuration: collected first, then told all at once."""

from collections.abc import Sequence

from megaswitch.utils.errors import UserError

_MOST_SHOWN = 40


class ConfigError(UserError):
    """Wrong keys or values; `problems` holds one line each, the message all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        rest = [f"and {len(problems) - _MOST_SHOWN} more"] if len(problems) > _MOST_SHOWN else []
        super().__init__("\n  ".join([f"{head} in the configuration:", *problems[:_MOST_SHOWN], *rest]))


class BadValueError(Exception):
    """A value that is not of its key's type (internal: it becomes a line of a `ConfigError`)."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        super().__init__(expected)


def raise_if_any(problems: Sequence[str]) -> None:
    """Raises one `ConfigError` for all problems; returns when there are none."""
    if problems:
        raise ConfigError(problems)
