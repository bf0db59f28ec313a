"""Relative-position buckets: the published thresholds, and what lies between and beyond."""

import torch

from megaswitch.ops.reference.relative_buckets import relative_buckets, thresholds


def test_published_thresholds():
    assert thresholds(16, 128) == (*range(8), 8, 12, 16, 23, 32, 46, 64, 91)
    assert thresholds(32, 128) == (*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113)


def test_each_threshold_is_the_first_distance_of_its_bucket():
    for bucket, least in enumerate(thresholds(32, 128)):
        if bucket:
            behind = torch.tensor([-least, -(least - 1)])
            assert relative_buckets(behind, bidirectional=False).tolist() == [bucket, bucket - 1]


def test_both_directions_in_the_encoder():
    distance = torch.arange(1, 400)
    before = relative_buckets(-distance, bidirectional=True)
    after = relative_buckets(distance, bidirectional=True)
    assert torch.equal(after, before + 16)
    assert relative_buckets(torch.tensor([0]), bidirectional=True).item() == 0
    assert (before.diff() >= 0).all() and before.max() == 15


def test_only_the_past_in_the_decoder():
    assert not relative_buckets(torch.arange(0, 400), bidirectional=False).any()
    past = relative_buckets(-torch.arange(0, 400), bidirectional=False)
    assert (past.diff() >= 0).all() and past.max() == 31
    assert past.unique().numel() == 32


def test_beyond_the_largest_distance_all_are_one():
    far = torch.tensor([-128, -129, -10_000])
    assert relative_buckets(far, bidirectional=False).tolist() == [31] * 3
    assert relative_buckets(far, bidirectional=True).tolist() == [15] * 3
