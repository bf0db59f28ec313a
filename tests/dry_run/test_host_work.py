"""Which operations count as launched, and what is told of them."""

import pytest
import torch

from megaswitch.dry_run.host_work import PARTS
from megaswitch.dry_run.watch import Watch
from megaswitch.utils.host import answered_by, host_read

X = torch.ones(2, 3)
NOTHING = {
    "views": lambda: (X.view(6), X.t()[1:], X.detach(), X.split(1), X.unsqueeze(0).expand(4, 2, 3)),
    "allocation": lambda: (torch.empty(3), torch.empty_like(X), X.new_empty(2), X.contiguous(), X.to(X.dtype)),
    "to the device": lambda: (X.to("meta"), torch.empty(2, 3, device="meta").copy_(X)),
    "a read": lambda: host_read("kind", X),
}
SOMETHING = {
    "a product and one into place": (lambda: torch.mm(X, X.t()).add_(1.0), 2),
    "numbers": (lambda: (torch.zeros(3), torch.arange(3), torch.empty(3).fill_(1.0)), 3),
    "copies": (lambda: (X.clone(), X.t().contiguous(), X.to(torch.float64), torch.empty(2, 3).copy_(X)), 4),
    "a kernel of many parts": (lambda: torch.softmax(X, -1), 1),
}


def launched(work) -> tuple[dict[str, int], dict[str, int]]:
    watch = Watch(played=False)
    with watch.watching(), answered_by(watch.host.counting(lambda kind, tensor: tensor.tolist())):
        watch.start()
        work()
    told = watch.host.facts()
    assert sum(told["launched"][part] for part in PARTS) == told["launched"]["total"]
    return told["launched"], told["reads"]


@pytest.mark.parametrize("name", NOTHING)
def test_what_launches_nothing(name):
    counts, reads = launched(NOTHING[name])
    assert counts["total"] == 0
    assert reads == ({"kind": 1, "total": 1} if name == "a read" else {"total": 0})


@pytest.mark.parametrize("name", SOMETHING)
def test_what_launches(name):
    work, number = SOMETHING[name]
    assert launched(work)[0]["total"] == number


def test_parts_of_a_step():
    layer = torch.nn.Linear(3, 3, bias=False)

    def work() -> None:
        (layer(X) ** 2).sum().backward()
        layer.weight.detach().sub_(layer.weight.grad)

    counts, _ = launched(work)
    assert counts["forward"] == 1, "the product: what is done outside of layers is in no pass"
    assert counts["other"] == 4, "two for the loss, its own gradient, and the update"
    assert counts["backward"] > 2
