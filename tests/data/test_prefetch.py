"""The prefetcher: the same batches in the same order, no further ahead than said, errors in place, no thread left."""

import threading
import time

import numpy as np
import pytest

from megaswitch.data.batch import Batch
from megaswitch.data.prefetch import Prefetcher


class Counting:
    """Makes batches that hold their numbers alone; fails at one sample if told so."""

    def __init__(self, fails_at=None):
        self.made = 0
        self.fails_at = fails_at

    def batch(self, first, count, make):
        if self.fails_at is not None and first >= self.fails_at:
            raise ValueError(f"sample {first} is bad")
        self.made += 1
        samples = np.arange(first, first + count)
        return Batch(samples, samples, samples, samples)


def two_a_step(step):
    return [(4 * step, 2), (4 * step + 2, 2)]


def running():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_arrive_in_order():
    with Prefetcher(Counting(), two_a_step, 3, 6) as steps:
        seen = [[batch.samples_B.tolist() for batch in batches] for batches in steps]
    assert seen == [[[12, 13], [14, 15]], [[16, 17], [18, 19]], [[20, 21], [22, 23]]]
    assert running() == []


def test_batches_that_do_not_follow_one_another_are_made_one_by_one():
    source = Counting()
    with Prefetcher(source, lambda step: [(8, 2), (0, 2)], 0, 1) as steps:
        assert [[batch.samples_B.tolist() for batch in batches] for batches in steps] == [[[8, 9], [0, 1]]]
    assert source.made == 2


def test_no_further_ahead_than_said():
    source = Counting()
    with Prefetcher(source, two_a_step, 0, 1000, ahead=3) as steps:
        next(iter(steps))
        deadline = time.monotonic() + 5
        while source.made < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        # One step taken, three waiting, one in the worker's hands; a step's batches are made at once.
        assert source.made == 5
    assert running() == []


def test_errors_come_after_the_steps_before_them():
    seen = []
    with (
        pytest.raises(ValueError, match="sample 8 is bad"),
        Prefetcher(Counting(fails_at=8), two_a_step, 0, 9) as steps,
    ):
        for batches in steps:
            seen.append(batches[0].samples_B[0])
    assert seen == [0, 4] and running() == []


def test_leaving_early_ends_the_thread():
    with pytest.raises(KeyboardInterrupt), Prefetcher(Counting(), two_a_step, 0, 10**9, ahead=1) as steps:
        next(iter(steps))
        assert len(running()) == 1
        raise KeyboardInterrupt
    assert running() == []


def test_asking_again_after_the_end():
    with Prefetcher(Counting(), two_a_step, 5, 5) as steps:
        assert list(steps) == list(steps) == []
    with Prefetcher(Counting(fails_at=0), two_a_step, 0, 5) as steps:
        for _ in range(2):
            with pytest.raises(ValueError, match="sample 0 is bad"):
                next(iter(steps))
