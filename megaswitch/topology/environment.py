"""The numbers that torchrun puts into the environment (no torch here)."""

import os

from megaswitch.utils.errors import UserError


def process_number(name: str, alone: int, least: int = 0) -> int:
    """The whole number in variable `name`, `alone` where it is not set; UserError for anything below `least` or
    that is no number."""
    text = os.environ.get(name, str(alone))
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UserError(
            f"the environment's {name} is {text!r}, which is no whole number from {least}; "
            "torchrun sets it: start by torchrun, or unset it to run one process"
        )
    return int(text)
