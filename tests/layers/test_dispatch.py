"""Tokens to experts and back against a loop over tokens, however the experts are divided and the tokens sent."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.layers.moe.dispatch import make_route
from megaswitch.layers.moe.padded import make_padded_route
from megaswitch.layers.weight_work import WeightWork
from megaswitch.topology.topology import make_axis

EXPERTS, TOKENS, WIDTH = 8, 13, 3


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    index = torch.randint(0, EXPERTS, (TOKENS,), generator=generator)
    return index, torch.rand(TOKENS, generator=generator) < 0.7


def some_experts_empty(rank: int) -> tuple[Tensor, Tensor]:
    return torch.full((TOKENS,), 5 if rank % 2 else 2), torch.ones(TOKENS, dtype=torch.bool)


def all_to_one(rank: int) -> tuple[Tensor, Tensor]:
    return torch.full((TOKENS,), EXPERTS - 1), torch.ones(TOKENS, dtype=torch.bool)


def nothing_kept(rank: int) -> tuple[Tensor, Tensor]:
    return mixed(rank)[0], torch.zeros(TOKENS, dtype=torch.bool)


def one_rank_silent(rank: int) -> tuple[Tensor, Tensor]:
    """Unrouted tokens have no expert at all."""
    return mixed(rank) if rank else (torch.full((TOKENS,), -1), torch.zeros(TOKENS, dtype=torch.bool))


CASES = {f.__name__: f for f in (mixed, some_experts_empty, all_to_one, nothing_kept, one_rank_silent)}


def by_loop(x_TD: Tensor, w_ED: Tensor, index_T: Tensor, kept_T: Tensor) -> Tensor:
    """Expert e multiplies by w[e]; what is not kept is zero."""
    rows = zip(x_TD, index_T.tolist(), kept_T.tolist(), strict=True)
    return torch.stack([x * w_ED[index] * float(kept) for x, index, kept in rows])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_round_trip_with_gradients(world, n, case, padded):
    w_ED = number(EXPERTS, WIDTH).requires_grad_()
    xs = [number(TOKENS, WIDTH, seed=1 + r).requires_grad_() for r in range(n)]
    weights = [number(TOKENS, WIDTH, seed=50 + r) for r in range(n)]
    choices = [CASES[case](r) for r in range(n)]
    expected = [by_loop(x, w_ED, *choice) for x, choice in zip(xs, choices, strict=True)]
    torch.stack([(y * w).sum() for y, w in zip(expected, weights, strict=True)]).sum().backward()
    total_E = torch.stack([torch.bincount(i[k], minlength=EXPERTS) for i, k in choices]).sum(0)

    def work():
        axis = make_axis("ep", range(n), dist.get_rank())
        own_w = w_ED.detach().chunk(n)[axis.rank].clone().requires_grad_()
        x = xs[axis.rank].detach().clone().requires_grad_()
        index, kept = choices[axis.rank]
        if padded:
            route = make_padded_route(index, kept, EXPERTS, TOKENS, axis)
        else:
            route = make_route(index, kept, EXPERTS, axis)
        rows = route.by_expert(route.send(x, WeightWork()).wait())
        expert_of_row = torch.arange(len(own_w)).repeat_interleave(torch.tensor(route.counts))
        out = rows * own_w[expert_of_row]
        y = route.home(out, torch.ones(TOKENS, 1), WeightWork())
        assert torch.equal(route.home(out.detach(), None, WeightWork()), y.detach()), "a choice each, gates of 1"
        (y * weights[axis.rank]).sum().backward()
        return y.detach(), route.counts, None if padded else sum(route.sent), x.grad, own_w.grad

    ranks = world(n, work)
    for rank, (y, _, sent, grad, _) in enumerate(ranks):
        assert torch.equal(y, expected[rank].detach())
        assert padded or sent == int(choices[rank][1].sum()), "what is dropped must not travel"
        assert torch.equal(grad, xs[rank].grad)
    rows = [n * TOKENS] * EXPERTS if padded else total_E.tolist()
    assert [c for _, counts, *_ in ranks for c in counts] == rows
    difference = (torch.cat([grad for *_, grad in ranks]) - w_ED.grad).abs().max()
    assert difference <= 1e-14 * w_ED.grad.abs().max()


def test_rows_of_an_expert_come_by_rank_and_in_token_order(world):
    """The order of a sum over an expert's rows is the same on every run."""

    def work():
        axis = make_axis("ep", range(2), dist.get_rank())
        index = torch.tensor([3, 0, 3, 1])
        name = torch.arange(4.0).unsqueeze(1) + 10 * axis.rank
        route = make_route(index, torch.ones(4, dtype=torch.bool), 4, axis)
        return route.by_expert(route.send(name, WeightWork()).wait()).flatten().tolist(), route.counts

    assert world(2, work) == [([1.0, 11.0, 3.0, 13.0], [2, 2]), ([0.0, 2.0, 10.0, 12.0], [0, 4])]


def test_padded_rows_are_as_many_whatever_is_routed(world):
    """Shapes depend on nothing but the slots: an empty slot is a row of zeros at its place."""

    def work():
        axis = make_axis("ep", range(2), dist.get_rank())
        index, kept = torch.tensor([3, 0, 3, 1]), torch.tensor([True, True, True, axis.rank == 0])
        route = make_padded_route(index, kept, 4, 2, axis)
        name = torch.arange(1.0, 5.0).unsqueeze(1) + 10 * axis.rank
        return route.by_expert(route.send(name, WeightWork()).wait()).flatten().tolist(), route.counts

    first, second = world(2, work)
    assert first == ([2.0, 0.0, 12.0, 0.0, 4.0, 0.0, 0.0, 0.0], [4, 4])
    assert second == ([0.0, 0.0, 0.0, 0.0, 1.0, 3.0, 11.0, 13.0], [4, 4])
