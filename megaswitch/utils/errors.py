"""Errors for users: each says what is wrong, what to do, and with which code the process ends.

The codes follow BSD's sysexits where one fits; 75-78 are the ones a scheduler is meant to act on.
"""


class UserError(ValueError):
    """Wrong usage or configuration: the message says what to do."""

    exit_code = 64


class DataError(UserError):
    """A file is there but its content is damaged or unusable."""

    exit_code = 65


class MissingInputError(UserError):
    """A file that is needed is not there."""

    exit_code = 66


class CannotWriteError(UserError):
    """An output cannot be written (no space, no permission, taken by another run)."""

    exit_code = 73


class StorageError(CannotWriteError):
    """A disk or file system keeps failing, whatever is asked of it."""

    exit_code = 74


class PeerLostError(UserError):
    """Another process of the run died or stopped answering."""

    exit_code = 76


class DivergedError(UserError):
    """Loss or gradients are no longer finite."""

    exit_code = 78


EXIT_PREEMPTED = 75
"""Training stopped on a signal after saving: start again to go on."""
EXIT_INTERNAL = 70
"""An error of ours."""
EXIT_UNTRUSTED = 77
"""A file asked for something that only trusted input may do."""
