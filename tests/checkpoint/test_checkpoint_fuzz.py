"""Manifests, headers and configurations damaged at random: refused or harmless, in bounded memory and time."""

import random
import resource
from pathlib import Path

import pytest
from checkpoint.fuzz import TARGETS, attack, no_hang
from hypothesis import given, settings
from hypothesis import strategies as st

ROOM = 96 << 20
"""Bytes of address space that a reader of a few hundred bytes may still take; what a damaged size asks for is more."""
QUICK = 1500


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(TARGETS)), rng=st.randoms(use_true_random=False))
def test_any_damage(tmp_path_factory, name, rng):
    with no_hang():
        attack(name, rng, tmp_path_factory.getbasetemp())


def attack_often(name: str, times: int, folder: Path) -> int:
    """Attacks in this process, whose memory is limited from here on; how many were refused."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    refused = 0
    for number in range(times):
        rng = random.Random(f"{name} {number}")
        with no_hang():
            try:
                refused += attack(name, rng, folder)
            except BaseException as error:
                raise AssertionError(f"attack number {number} on the {name}: {error!r}") from error
    return refused


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process where Linux tells it")
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_thousand(world, tmp_path, name):
    (refused,) = world(1, attack_often, name, QUICK, tmp_path)
    assert QUICK / 10 < refused < QUICK  # neither is all of it refused, nor all of it harmless


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process where Linux tells it")
@pytest.mark.parametrize("name", TARGETS)
def test_a_million(world, tmp_path, name):
    times = TARGETS[name].times
    (refused,) = world(1, attack_often, name, times, tmp_path, limit=7000.0)
    print(f"{name}: {refused} of {times} refused")
    assert times / 10 < refused < times
    assert sum(target.times for target in TARGETS.values()) >= 1_000_000
