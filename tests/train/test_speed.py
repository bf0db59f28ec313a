"""Figures of speed: what is counted, and how time is written. No time itself is held to anything."""

from dataclasses import replace

import pytest
import torch

from megaswitch.model.config import ModelConfig
from megaswitch.model.flops import flops_per_sequence
from megaswitch.model.transformer import alone
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.speed import Clock, clock_text, measured_peak

MODEL = ModelConfig(encoder_length=10, decoder_length=5)
CONFIG = replace(RunConfig(), model=MODEL, train=TrainConfig(global_batch=4))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (0.4, "0:00:00"), (59.6, "0:01:00"), (61, "0:01:01"), (3599.5, "1:00:00"), (360_000, "100:00:00")],
)
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text


def test_tokens_and_share_go_by_the_same_seconds():
    """4 sequences of 15 positions, and three forward passes' worth of FLOPs."""
    speed = Clock(CONFIG, peak=1e12).lap(steps_left=7)
    seconds = 4 * 15 / speed.tokens_per_s
    assert speed.share_of_peak * 1e12 * seconds == pytest.approx(3 * 4 * flops_per_sequence(MODEL, router=True))
    assert speed.seconds_left == pytest.approx(7 * seconds)


def test_nothing_is_left_at_the_end():
    assert Clock(CONFIG, peak=1.0).lap(steps_left=0).seconds_left == 0.0


def test_the_peak_is_a_positive_number():
    assert measured_peak(alone(torch.device("cpu")), torch.float32) > 0.0
