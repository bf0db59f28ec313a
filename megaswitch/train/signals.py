"""Signals that ask a run to end: the first one lets the step finish and saves, the second ends at once."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def is_asked(self) -> bool:
        """Whether it was, so far."""
        return self.asked

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; die of the second."""
        name = signal.Signals(number).name
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True
        log.warning("%s: finishing this step, then saving; a second signal ends at once", name)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle SIGTERM, SIGINT and SIGUSR1 for the length of the block."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
