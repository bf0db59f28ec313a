"""Noisy top-k gating against its definition (Shazeer et al. 2017)."""

import pytest
import torch
from torch.nn import functional as F

from megaswitch.layers.moe.choice import Places
from megaswitch.layers.moe.losses import variation
from megaswitch.layers.moe.routers.noisy import normal, pick_noisy
from megaswitch.layers.moe.scores import Scores

TOKENS, EXPERTS = 5, 6


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def places(tokens: int) -> Places:
    return Places(torch.zeros(tokens, dtype=torch.int64), torch.ones(tokens, dtype=torch.bool), 1)


def test_gates_are_a_softmax_over_the_chosen_alone():
    clean, std, noise = numbers(0, TOKENS, EXPERTS), numbers(1, TOKENS, EXPERTS), numbers(2, TOKENS, EXPERTS)
    choice = pick_noisy(Scores(clean, places(TOKENS)), std, noise, 3)
    noisy = clean + noise * F.softplus(std)
    for t in range(TOKENS):
        best = sorted(range(EXPERTS), key=lambda i, t=t: -noisy[t, i].item())[:3]
        assert choice.index_TK[t].tolist() == best
        torch.testing.assert_close(choice.gate_TK[t], torch.softmax(noisy[t, best], -1))
        importance = choice.smooth.importance_TE[t]
        assert importance.sum().item() == pytest.approx(1.0)
        assert importance.nonzero().flatten().tolist() == sorted(best)


def test_without_noise_the_clean_logits_decide():
    clean = numbers(3, TOKENS, EXPERTS)
    choice = pick_noisy(Scores(clean, places(TOKENS)), numbers(4, TOKENS, EXPERTS), None, 2)
    assert torch.equal(choice.index_TK, torch.topk(clean, 2, -1).indices)
    assert choice.smooth.load_TE is None


@pytest.mark.parametrize("choices", [1, 2, 5])
def test_load_is_the_chance_of_being_chosen_when_the_own_noise_is_drawn_again(choices):
    clean, raw, noise = numbers(5, 1, EXPERTS), numbers(6, 1, EXPERTS), numbers(7, 1, EXPERTS)
    load = pick_noisy(Scores(clean, places(1)), raw, noise, choices).smooth.load_TE[0]
    draws = 200_000
    std = F.softplus(raw)
    for expert in range(EXPERTS):
        noisy = (clean + noise * std).repeat(draws, 1)
        noisy[:, expert] = clean[0, expert] + numbers(8 + expert, draws) * std[0, expert]
        rank = (noisy > noisy[:, expert : expert + 1]).sum(1)
        share = (rank < choices).double().mean().item()
        assert load[expert].item() == pytest.approx(share, abs=5 * 0.5 / draws**0.5)


def test_all_experts_chosen_have_a_load_of_one():
    clean = numbers(9, TOKENS, EXPERTS)
    choice = pick_noisy(Scores(clean, places(TOKENS)), clean, clean, EXPERTS)
    assert torch.equal(choice.smooth.load_TE, torch.ones_like(clean))


def test_variation_is_variance_over_squared_mean():
    total = numbers(10, 3, EXPERTS).abs()
    expected = total.var(1, unbiased=False) / total.mean(1).square()
    torch.testing.assert_close(variation(total), expected)
    assert variation(torch.ones(1, EXPERTS)).item() == 0.0
    assert variation(torch.zeros(1, EXPERTS)).item() == 0.0


def test_normal_numbers_from_uniform_ones():
    uniform = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = normal(uniform)
    assert abs(drawn.mean().item()) < 0.01 and drawn.std().item() == pytest.approx(1.0, abs=0.01)
    assert normal(torch.tensor([0.0, 1.0])).isfinite().all()
    assert normal(torch.tensor([0.5])).item() == pytest.approx(0.0, abs=1e-7)
