"""Rank-aware logging, seen from outside."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from megaswitch.utils.logging import setup
rank, world = int(sys.argv[1]), int(sys.argv[2])
setup(rank, world)
setup(rank, world)
log = logging.getLogger("megaswitch.somewhere")
log.debug("quiet"); log.info("100% told"); log.warning("warned")
assert "torch" not in sys.modules
"""


def lines(rank, world):
    program = [sys.executable, "-c", PROGRAM, str(rank), str(world)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [line.split(" ", 2)[2] for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("rank", "world", "expected"),
    [
        (0, 1, ["INFO 100% told", "WARNING warned"]),
        (0, 2, ["[rank 0] INFO 100% told", "[rank 0] WARNING warned"]),
        (1, 2, ["[rank 1] WARNING warned"]),
    ],
)
def test_who_says_what(rank, world, expected):
    assert lines(rank, world) == expected
