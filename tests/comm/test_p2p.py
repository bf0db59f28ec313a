"""The mailbox: transfers told apart by tags, in any order, also of a rank to itself."""

import torch
import torch.distributed as dist

from megaswitch.comm.p2p import Mailbox
from megaswitch.topology.topology import Axis, make_axis

CPU = torch.device("cpu")


def mailbox_here(*ranks: int) -> Mailbox:
    return Mailbox(make_axis("line", ranks or range(dist.get_world_size()), dist.get_rank()))


def take(box: Mailbox, source: int, tag: int) -> float:
    return box.expect((1,), torch.float64, CPU, source, tag).wait().item()


def letter(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_tags_tell_transfers_apart_in_any_order(world):
    def work():
        box = mailbox_here()
        if box.axis.rank == 0:
            for tag in (7, 3, 11):
                box.send(letter(tag / 10), 1, tag)
            box.flush()
            return None
        return [take(box, 0, tag) for tag in (3, 11, 7)]

    assert world(2, work)[1] == [0.3, 1.1, 0.7]


def test_sends_never_wait(world):
    """All send to all what no one has asked for yet, and more than any buffer holds."""
    large = 1 << 20

    def work():
        box, n = mailbox_here(), dist.get_world_size()
        for to in range(n):
            box.send(torch.full((large,), float(box.axis.rank)), to, tag=5)
        found = [box.expect((large,), torch.float32, CPU, source, 5).wait().unique().tolist() for source in range(n)]
        box.flush()
        return found

    assert world(3, work) == [[[0.0], [1.0], [2.0]]] * 3


def test_shapes_types_and_views(world):
    x = torch.arange(12).view(3, 4)

    def work():
        box = mailbox_here()
        if box.axis.rank == 0:
            box.send(x.t(), 1, 0)
            box.send(x.to(torch.bfloat16).requires_grad_(), 1, 1)
            box.flush()
            return True
        view = box.expect((4, 3), torch.int64, CPU, 0, 0).wait()
        narrow = box.expect((3, 4), torch.bfloat16, CPU, 0, 1).wait()
        return torch.equal(view, x.t()) and torch.equal(narrow, x.to(torch.bfloat16)) and not narrow.requires_grad

    assert world(2, work) == [True, True]


def test_positions_are_those_of_the_axis(world):
    """Ranks 3 and 1 of the world are 0 and 1 of the axis."""

    def work():
        if dist.get_rank() not in (1, 3):
            return None
        box = mailbox_here(3, 1)
        box.send(letter(dist.get_rank()), 1 - box.axis.rank, 2)
        found = take(box, 1 - box.axis.rank, 2)
        box.flush()
        return found

    assert world(4, work) == [None, 3.0, None, 1.0]


def test_to_itself_it_stays_in_memory():
    box = Mailbox(Axis("alone", 0, (0,)))
    for tag in (2, 9):
        box.send(letter(tag).requires_grad_(), 0, tag)
    assert [take(box, 0, tag) for tag in (9, 2)] == [9.0, 2.0]
    box.flush()


def test_self_sends_beside_others(world):
    def work():
        box = mailbox_here()
        box.send(letter(10 + box.axis.rank), box.axis.rank, 1)
        box.send(letter(20 + box.axis.rank), 1 - box.axis.rank, 1)
        found = take(box, 1 - box.axis.rank, 1), take(box, box.axis.rank, 1)
        box.flush()
        return found

    assert world(2, work) == [(21.0, 10.0), (20.0, 11.0)]
