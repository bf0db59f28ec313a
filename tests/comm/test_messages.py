"""Byte strings between ranks."""

import torch.distributed as dist

from megaswitch.comm.messages import broadcast_bytes, gather_bytes


def test_alone_they_are_the_identity():
    assert gather_bytes(b"a\0", None) == [b"a\0"]
    assert broadcast_bytes(b"", None) == b""


def test_gather_keeps_lengths_and_order(world):
    words = [b"", b"one\0", bytes(range(256)) * 300]

    def work():
        group = dist.group.WORLD
        return gather_bytes(words[dist.get_rank()], group), gather_bytes(b"", group)

    assert world(3, work) == [(words, [b"", b"", b""])] * 3


def test_broadcast_from_any_rank(world):
    def work():
        mine = b"rank %d" % dist.get_rank() * (dist.get_rank() + 1)
        group = dist.group.WORLD
        return broadcast_bytes(mine, group), broadcast_bytes(mine, group, source=1), broadcast_bytes(b"", group)

    assert world(2, work) == [(b"rank 0", b"rank 1rank 1", b"")] * 2


def test_in_a_group_of_some_ranks(world):
    def work():
        group = dist.new_group([1, 2])
        if dist.get_rank() == 0:
            return None
        return gather_bytes(b"%d" % dist.get_rank(), group), broadcast_bytes(b"%d" % dist.get_rank(), group)

    assert world(3, work) == [None, ([b"1", b"2"], b"1"), ([b"1", b"2"], b"1")]
