"""The parser of commands with arguments of their own (no torch here)."""

import argparse
from typing import NoReturn

from megaswitch.utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, with the exit code of wrong usage, and texts kept as written."""

    def __init__(self, prog: str, description: str | None, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # what is no option of the command may be a key of the configuration
        )

    def error(self, message: str) -> NoReturn:
        """UserError with the usage instead of an exit of its own."""
        raise UserError(f"{message}\n{self.format_usage()}".rstrip())
