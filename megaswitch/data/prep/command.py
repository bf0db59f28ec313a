"""What the commands of `data_prep/` share: exit codes, one-line errors, and progress where a person looks on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from megaswitch.utils.arguments import Program
from megaswitch.utils.errors import CannotWriteError, UserError


class Parser(Program):
    """The parser of a script with an example."""

    def __init__(self, description: str, example: str) -> None:
        super().__init__(description=description, epilog=f"example:\n  {example}")


def run(work: Callable[[], None], interrupted: str = "nothing was written") -> int:
    """Runs a command's work and returns its exit code; an expected error is one line on stderr.

    `interrupted` says what Ctrl-C leaves behind.
    """
    try:
        work()
    except UserError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        say(f"error: {error}")
        return CannotWriteError.exit_code
    except KeyboardInterrupt:
        say(f"interrupted; {interrupted}")
        return 130
    return 0


def say(message: str) -> None:
    """One line on stderr: stdout is for results."""
    sys.stderr.write(f"{message}\n")


def positive(text: str) -> int:
    """An argparse type: an integer of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that moves a progress bar on by so many units; it does nothing where stderr is no terminal.

    The bar has no thread of its own, so that processes may be forked while it stands.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=max(total, 1))

        def advance(units: int) -> None:
            bar.advance(task, units)
            bar.refresh()

        yield advance
