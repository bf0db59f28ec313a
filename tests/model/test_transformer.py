"""The whole model in one process: generation, auxiliary losses, and what a pass goes by."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from megaswitch.model.config import ModelConfig
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.model.units import param_specs

CONFIG = ModelConfig(
    vocab_size=6,
    d_model=16,
    d_ff=24,
    d_kv=4,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=4,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1,
    encoder_length=8,
    decoder_length=5,
    tied_embeddings=False,
    eval_capacity_factor=1e-9,
    min_capacity=1,
)


def model_of(config: ModelConfig = CONFIG, seed: int = 0) -> SwitchTransformer:
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: nn.Parameter(torch.randn(spec.shape, generator=generator, dtype=torch.float64) * 0.7)
        for name, spec in param_specs(config).items()
    }
    return SwitchTransformer(config, params).eval()


def sources() -> Tensor:
    return torch.randint(2, 6, (5, 8), generator=torch.Generator().manual_seed(1))


def greedy(model: SwitchTransformer, encoder_ids_BS: Tensor, tokens: int) -> list[list[int]]:
    """One sequence at a time, by whole passes; each up to and with its EOS."""
    found = []
    for row in encoder_ids_BS:
        ids = [0]
        while len(ids) <= tokens and 1 not in ids:
            logits = model(row.unsqueeze(0), torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
        found.append(ids[1:])
    return found


DROPLESS = replace(CONFIG, eval_capacity_factor=None)


@pytest.mark.parametrize(("seed", "lengths"), [(229, [2, 2, 4, 1, 4]), (156, [5, 3, 4, 6, 12])])
def test_generation_is_greedy_and_drops_nothing(seed, lengths):
    """It ends with the last sequence or after `max_tokens`; sequences that have ended go on with 0."""
    expected = greedy(model_of(DROPLESS, seed), sources(), 12)
    assert [len(ids) for ids in expected] == lengths, "the example tells nothing"
    model = model_of(CONFIG, seed)
    assert greedy(model, sources(), 12) != expected, "the example tells nothing of dropping"
    longest = max(lengths)
    padded = [ids + [0] * (longest - len(ids)) for ids in expected]
    assert model.generate(sources(), 12).tolist() == padded
    assert model.generate(sources(), 2).tolist() == [ids[:2] for ids in padded]


def test_a_pass_drops_by_the_evaluation_capacity():
    decoder_ids = torch.randint(2, 6, (5, 5), generator=torch.Generator().manual_seed(2))
    dropping, dropless = model_of(), model_of(replace(CONFIG, eval_capacity_factor=None))
    assert not torch.equal(dropping(sources(), decoder_ids).logits, dropless(sources(), decoder_ids).logits)


def test_aux_losses_by_layer():
    model = model_of()
    out = model(sources(), torch.ones(5, 3, dtype=torch.int64))
    assert list(out.aux_losses) == ["encoder.1", "decoder.1"]
    assert all(0.0 < loss <= 4.0 for loss in out.aux_losses.values())
    for name, parameter in model.named_parameters():
        if "router" in name:
            parameter.data.zero_()
    out = model(sources(), torch.ones(5, 3, dtype=torch.int64))
    assert list(out.aux_losses.values()) == pytest.approx([1.0, 1.0]), "even probabilities, all to the first expert"


def test_masked_tokens_are_not_seen():
    model, decoder_ids = model_of(replace(CONFIG, eval_capacity_factor=None)), torch.ones(5, 3, dtype=torch.int64)
    mask = torch.ones(5, 8, dtype=torch.bool)
    mask[:, 6:] = False
    other = sources()
    other[:, 6:] = 5 - (other[:, 6:] - 2)
    with_mask = [model(ids, decoder_ids, mask).logits for ids in (sources(), other)]
    assert torch.equal(*with_mask)
    assert not torch.equal(*(model(ids, decoder_ids).logits for ids in (sources(), other)))


def test_logits_are_causal():
    model, ids = model_of(replace(CONFIG, eval_capacity_factor=None)), torch.tensor([[0, 2, 3, 4, 5]] * 5)
    changed = ids.clone()
    changed[:, 3:] = 2
    before, after = model(sources(), ids).logits, model(sources(), changed).logits
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3:], after[:, 3:])
