"""What the commands share: codes for errors, and progress for a terminal alone."""

import argparse
import io

import pytest
from rich.console import Console

from megaswitch.data.prep import command
from megaswitch.data.prep.command import positive, progress, run
from megaswitch.utils.errors import CannotWriteError, DataError, MissingInputError, UserError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("wrong"), 65),
        (UserError("wrong"), 64),
        (MissingInputError("wrong"), 66),
        (CannotWriteError("wrong"), 73),
        (OSError("wrong"), 73),
        (KeyboardInterrupt(), 130),
    ],
)
def test_codes(error, code, capsys):
    def work():
        raise error

    assert run(work) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_no_error_is_hidden():
    with pytest.raises(ZeroDivisionError):
        run(lambda: print(1 / 0))
    assert run(lambda: None) == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(terminal, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(command, "Console", lambda stderr: Console(file=shown, force_terminal=terminal, width=80))
    with progress("working", 4) as advance:
        advance(2)
    assert ("working" in shown.getvalue() and "50%" in shown.getvalue()) == terminal
    assert terminal or shown.getvalue() == ""


def test_positive():
    assert positive("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
        positive("0")
