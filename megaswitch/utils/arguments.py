"""Parsers of programs and of commands with arguments of their own (no torch here)."""

import argparse
import sys
from typing import Any, NoReturn

from megaswitch.utils.errors import UserError


class Program(argparse.ArgumentParser):
    """argparse, with texts kept as written and the exit code of wrong usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, exits with 64."""
        self.print_usage(sys.stderr)
        self.exit(UserError.exit_code, f"{self.prog}: error: {message}\n")


class Parser(Program):
    """The same for a command of `megaswitch`, which answers for all of them."""

    def __init__(self, prog: str, description: str | None, epilog: str, usage: str | None = None) -> None:
        # no abbreviations: what is no option of the command may be a key of the configuration
        super().__init__(prog=prog, usage=usage, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """UserError with the usage instead of an exit of its own."""
        raise UserError(f"{message}\n{self.format_usage()}".rstrip())
