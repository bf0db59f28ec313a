"""Continuations: the cache, greedy search, sampling and beams, each against its definition."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from megaswitch.layers.attention import Kept
from megaswitch.model.config import ModelConfig
from megaswitch.model.decoding import Decoding
from megaswitch.model.record import Record
from megaswitch.model.sampling import draw, restricted
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.model.units import param_specs
from megaswitch.ops.reference.random import fold, start
from megaswitch.utils.errors import UserError

EOS = 1
CONFIG = ModelConfig(
    vocab_size=12,
    d_model=16,
    d_ff=24,
    d_kv=4,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=4,
    num_experts=4,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=2,
    encoder_length=8,
    decoder_length=5,
    tied_embeddings=False,
    eval_capacity_factor=1e-9,
    min_capacity=1,
)
TINY = replace(CONFIG, vocab_size=4, num_decoder_layers=2, num_sparse_decoder_layers=1)


def model_of(config: ModelConfig = CONFIG, seed: int = 0, scale: float = 0.5) -> SwitchTransformer:
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: nn.Parameter(torch.randn(spec.shape, generator=generator, dtype=torch.float64) * scale)
        for name, spec in param_specs(config).items()
    }
    return SwitchTransformer(config, params).eval()


def sources(rows: int = 5, vocabulary: int = 12) -> Tensor:
    ids = torch.randint(2, vocabulary, (rows, 8), generator=torch.Generator().manual_seed(1))
    ids[0, 5:] = 0  # padding
    return ids


def log_probs(config: ModelConfig, row: Tensor, ids: list[int], seed: int) -> Tensor:
    """Log probabilities of the token after `ids`, by a whole pass that drops nothing."""
    model = model_of(replace(config, eval_capacity_factor=None), seed)
    with torch.no_grad():
        return torch.log_softmax(model(row.unsqueeze(0), torch.tensor([[0, *ids]])).logits[0, -1], -1)


def decoding_of(model: SwitchTransformer, encoder_ids: Tensor, max_tokens: int) -> Decoding:
    batch = model._batch(encoder_ids, encoder_ids.new_zeros((encoder_ids.shape[0], 1)), None)
    ctx, record = model._context(batch, dropless=True), Record(model.config, torch.device("cpu"))
    return Decoding(model.decoder, model._encode(batch, ctx, record), batch, ctx, record, max_tokens)


@torch.no_grad()
def test_cached_logits_are_those_of_whole_passes():
    """Over distances that reach far into the logarithmic buckets of the decoder's relative positions."""
    model, length = model_of(), 150
    ids = torch.randint(0, 12, (5, length), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 0
    cached, whole = decoding_of(model, sources(), length), decoding_of(model, sources(), 0)
    for end in [*range(1, 40), *range(40, length + 1)]:
        step = cached.next_logits(ids[:, :end])
        if end < 40 or end % 16 == 0 or end == length:
            expected = whole.next_logits(ids[:, :end])
            assert float((step - expected).abs().max() / expected.abs().max()) < 1e-12, end
    with pytest.raises(AssertionError):
        cached.next_logits(torch.cat([ids, ids[:, :1]], 1))


@torch.no_grad()
def test_a_step_passes_one_token_through_the_decoder():
    decoding, seen = decoding_of(model_of(), sources(), 6), []
    for module in decoding.decoder.modules():
        module.register_forward_hook(lambda _module, args, _out: seen.extend(a for a in args if torch.is_tensor(a)))
    for end in range(1, 7):
        decoding.next_logits(torch.zeros(5, end, dtype=torch.int64))
    # self-attention's input, which is this step's tokens: no tensor of the decoder's stream is longer than one
    streams = [x for x in seen if x.dim() == 3 and x.shape[-1] == CONFIG.d_model and x.shape[1] != 8]
    assert streams and {x.shape[1] for x in streams} == {1}


@torch.no_grad()
def test_selected_rows_go_on_as_if_they_had_always_been_there():
    model = model_of()
    encoder_ids = sources()[:1].repeat(3, 1)
    ids = torch.tensor([[0, 2, 3], [0, 4, 5], [0, 6, 7]])
    decoding = decoding_of(model, encoder_ids, 4)
    for end in (1, 2, 3):
        decoding.next_logits(ids[:, :end])
    rows = torch.tensor([2, 2, 0])
    decoding.select(rows)
    follow = torch.cat([ids[rows], torch.tensor([[8], [9], [10]])], 1)
    expected = decoding_of(model, encoder_ids, 0).next_logits(follow)
    torch.testing.assert_close(decoding.next_logits(follow), expected, rtol=0, atol=1e-12)


def test_what_is_kept_starts_empty_and_selects_nothing():
    kept = Kept()
    kept.select(torch.tensor([0]))
    assert kept.k_BMHK is None and kept.v_BMHK is None


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"temperature": 0.8, "seed": 5}, {"temperature": 1.2, "top_k": 4, "top_p": 0.8}],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_cache_changes_no_token(options, mode):
    model = model_of(replace(CONFIG, dropout=0.5, jitter=0.3))
    model.train(mode == "train")  # generation is without noise in either
    cached = model.generate(sources(), 30, **options)
    assert torch.equal(cached, model.generate(sources(), 30, use_cache=False, **options))
    assert torch.equal(cached, model.eval().generate(sources(), 30, **options))
    assert cached.dtype == torch.int64 and cached.shape[0] == 5 and 1 <= cached.shape[1] <= 30


def test_a_mask_hides_tokens_from_generation():
    model, mask = model_of(), torch.ones(5, 8, dtype=torch.bool)
    mask[:, 5:] = False
    other = sources()
    other[:, 5:] = 3
    assert torch.equal(model.generate(sources(), 9, mask), model.generate(other, 9, mask))
    assert not torch.equal(model.generate(sources(), 9), model.generate(other, 9))


# --- sampling


def test_samples_depend_on_seed_and_sequence_alone():
    model, ids = model_of(), sources()
    written = model.generate(ids, 20, temperature=1.5, seed=3)
    assert torch.equal(written, model.generate(ids, 20, temperature=1.5, seed=3))
    assert not torch.equal(written, model.generate(ids, 20, temperature=1.5, seed=4))
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(model.generate(ids[order], 20, temperature=1.5, seed=3), written[order])
    for row in range(5):
        alone = model.generate(ids[row : row + 1], 20, temperature=1.5, seed=3)[0].tolist()
        assert alone == written[row].tolist()[: len(alone)] and not any(written[row].tolist()[len(alone) :])
    wider = torch.cat([ids, torch.zeros(5, 3, dtype=torch.int64)], 1)  # more padding
    assert torch.equal(model.generate(wider, 20, temperature=1.5, seed=3), written)


def test_equal_sequences_are_sampled_apart():
    written = model_of().generate(sources()[:1].repeat(8, 1), 12, temperature=1.5)
    assert len({tuple(row) for row in written.tolist()}) > 4


def test_nothing_follows_the_end():
    written = model_of(TINY, 2).generate(sources(40, 4), 25, temperature=1.0)
    ended = [row.index(EOS) for row in written.tolist() if EOS in row]
    assert len(ended) > 10, "the example tells nothing"
    for row in written.tolist():
        after = row[row.index(EOS) + 1 :] if EOS in row else []
        assert not any(after)
    assert written.shape[1] == max((row.index(EOS) + 1 if EOS in row else 25) for row in written.tolist())


def test_drawn_tokens_follow_the_distribution():
    count = 40_000
    logits = torch.tensor([0.3, -1.0, 1.7, 0.0, -4.0, 1.1])
    keys = fold(start(7, torch.device("cpu")), torch.arange(count))
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7)):
        drawn = draw(logits.expand(count, -1), keys, 4, temperature, top_k, top_p)
        found = torch.bincount(drawn, minlength=6).double() / count
        expected = restricted(logits[None], temperature, top_k, top_p)[0]
        # five standard deviations of a count
        assert bool(((found - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all())
        assert bool((found[expected == 0] == 0).all())


def test_what_top_k_and_top_p_leave():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64))

    def of(temperature: float, top_k: int, top_p: float) -> list[list[float]]:
        return [[round(p, 6) for p in row] for row in restricted(logits, temperature, top_k, top_p).tolist()]

    assert of(1.0, 0, 1.0) == [[0.1, 0.4, 0.2, 0.3], [0.25] * 4]
    assert of(1.0, 2, 1.0) == [[0, 0.571429, 0, 0.428571], [0.5, 0.5, 0, 0]]
    assert of(1.0, 0, 0.65) == [[0, 0.571429, 0, 0.428571], [0.333333, 0.333333, 0.333333, 0]]
    assert of(1.0, 0, 1e-9) == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert of(1.0, 3, 0.4) == [[0, 1, 0, 0], [0.5, 0.5, 0, 0]]
    assert of(0.5, 0, 1.0)[0] == [0.033333, 0.533333, 0.133333, 0.3]
    assert of(1.0, 9, 1.0) == of(1.0, 0, 1.0)


def test_a_low_temperature_is_greedy():
    model = model_of()
    assert torch.equal(model.generate(sources(), 12, temperature=1e-6), model.generate(sources(), 12))
    assert torch.equal(model.generate(sources(), 12, temperature=1.0, top_k=1), model.generate(sources(), 12))


# --- beams


def hypotheses(config: ModelConfig, row: Tensor, most: int, seed: int) -> Iterator[tuple[list[int], float]]:
    """Every continuation that ends, or is cut off at `most` tokens, with its log probability."""
    waiting: list[tuple[list[int], float]] = [([], 0.0)]
    while waiting:
        ids, score = waiting.pop()
        if ids and (ids[-1] == EOS or len(ids) == most):
            yield ids, score
            continue
        following = log_probs(config, row, ids, seed).tolist()
        waiting += [([*ids, token], score + p) for token, p in enumerate(following)]


@pytest.mark.parametrize("seed", [2, 5])
def test_wide_beams_find_the_best_of_all_continuations(seed):
    encoder_ids, most = sources(2, 4), 4
    every = [list(hypotheses(TINY, row, most, seed)) for row in encoder_ids]
    for penalty in (0.0, 0.6, 1.0, 2.0, -1.0):
        best = [max(found, key=lambda h: h[1] / len(h[0]) ** penalty)[0] for found in every]
        longest = max(map(len, best))
        written = model_of(TINY, seed).generate(encoder_ids, most, num_beams=4**most, length_penalty=penalty)
        assert written.tolist() == [ids + [0] * (longest - len(ids)) for ids in best], penalty


def plain_beam_search(config: ModelConfig, row: Tensor, most: int, beams: int, penalty: float, seed: int) -> list[int]:
    """The definition, one hypothesis at a time, without any early end."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(most):
        following = [(score, ids, log_probs(config, row, ids, seed).tolist()) for score, ids in live]
        grown = [(score + p, [*ids, token]) for score, ids, row_p in following for token, p in enumerate(row_p)]
        grown = sorted(grown, key=lambda h: -h[0])[: 2 * beams]
        ended += [h for h in grown[:beams] if h[1][-1] == EOS]
        live = [h for h in grown if h[1][-1] != EOS][:beams]
    return max([*ended, *live], key=lambda h: h[0] / len(h[1]) ** penalty)[1]


# With the tiny vocabulary something ends early and something longer beats it later: the search must go on until then.
@pytest.mark.parametrize(
    ("config", "seed", "beams", "penalty"),
    [(CONFIG, 1, 2, 1.0), (CONFIG, 1, 3, 0.0), (CONFIG, 1, 4, 2.0), (CONFIG, 1, 2, -0.5), (TINY, 20, 3, 1.0)]
    + [(TINY, seed, 3, 2.0) for seed in (10, 13, 14)],
)
def test_beams_are_those_of_the_definition(config, seed, beams, penalty):
    encoder_ids, most = sources(3, config.vocab_size), 6
    expected = [plain_beam_search(config, row, most, beams, penalty, seed) for row in encoder_ids]
    longest = max(map(len, expected))
    written = model_of(config, seed).generate(encoder_ids, most, num_beams=beams, length_penalty=penalty)
    assert written.tolist() == [ids + [0] * (longest - len(ids)) for ids in expected]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 0}, "num_beams is 0; give 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1, "temperature": 1.0}, "top_k is -1"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0.0"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample"),
        ({"top_k": 5}, "set a temperature above 0"),
        ({"top_p": 0.5}, "set a temperature above 0"),
    ],
)
def test_options_that_do_not_go_together(options, said):
    with pytest.raises(UserError, match=said):
        model_of().generate(sources(), 3, **options)


def test_some_token_must_be_allowed():
    with pytest.raises(UserError, match="max_tokens is 0; give 1 or more"):
        model_of().generate(sources(), 0)
