"""One thing that is wrong with a configuration, said so that it can be mended."""

from collections.abc import Sequence
from dataclasses import dataclass

from megaswitch.utils.errors import UserError


@dataclass(frozen=True)
class Problem:
    """A key, what is wrong with its value, and what to do."""

    key: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}; {self.remedy}"


def refuse(problems: Sequence[Problem]) -> None:
    """Raise one UserError that tells all problems at once; return when there are none."""
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise UserError(f"the configuration has {count}:\n" + "\n".join(f"  - {p}" for p in problems))
