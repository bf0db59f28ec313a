"""Logging with the standard library: who says what when a run has many processes.

Modules write `log = logging.getLogger(__name__)` as everywhere; a process calls `setup` once.
"""

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

ROOT = "megaswitch"


def setup(rank: int, world: int) -> logging.Logger:
    """Sends the package's messages to stderr and returns its logger; calling it again replaces what it set before.

    Rank 0 tells everything from INFO on, the others only from WARNING on. With more than one process each line
    begins with `[rank r]`. Colours are used on a terminal alone, so that log files stay plain.
    """
    prefix = f"[rank {rank}] " if world > 1 else ""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False, log_time_format="[%X]")
        handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s " + prefix + "%(levelname)s %(message)s"))
    handler.set_name(ROOT)
    logger = logging.getLogger(ROOT)
    for old in [h for h in logger.handlers if h.get_name() == ROOT]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    return logger
