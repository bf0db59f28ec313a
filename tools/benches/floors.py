"""The least that each part of a step has to compute and to move, whoever does it.

Products count 2 FLOPs a weight and token, three times (forward, and the gradients of inputs and weights); attention
counts its two products likewise. Bytes are those that a fused kernel cannot avoid when nothing stays in a cache from
one kernel to the next: every input read once and every result written once. What can be part of a neighbour
(activations, dropout, masks, casts) has a floor of nothing. Caches that hold activations beat such a floor, so that a
share above 1 is possible.

S, T tokens of encoder and decoder of the whole batch, D d_model, W heads x d_kv, V vocabulary, E experts.
"""

from dataclasses import dataclass

from benches.rates import Rates
from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.model.record import StepRecord
from megaswitch.model.units import param_specs
from megaswitch.params.derive import count
from megaswitch.train.config import RunConfig

PARTS = ("products", "attention", "norms", "router", "cross-entropy", "optimizer", "dropout", "activation", "rest")
_PASSES = 3


@dataclass(frozen=True)
class Need:
    """FLOPs in the step's type and in float32, bytes, and bytes of numbers that are changed in place."""

    flops: float = 0.0
    wide_flops: float = 0.0
    bytes: float = 0.0
    updated: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """Products and traffic one after the other."""
        products = self.flops / rates.flops + self.wide_flops / rates.wide
        return products + self.bytes / rates.bytes + self.updated / rates.updated


def needs(config: RunConfig, record: StepRecord, size: int) -> dict[str, Need]:
    """What a step needs by part, after its record; `size` is the bytes of a number in the step's type."""
    sequences = config.train.global_batch
    return {
        "products": _products(config.model, record, sequences),
        "attention": Need(flops=_PASSES * sequences * _attention(config.model)),
        "norms": Need(bytes=sequences * _norms(config.model) * size),
        "router": _router(config.model, record, sequences, size),
        "cross-entropy": Need(bytes=sequences * (8.0 + size) * config.model.decoder_length * config.model.vocab_size),
        "optimizer": Need(updated=_optimizer(config, size)),
    }


def _products(model: ModelConfig, record: StepRecord, sequences: int) -> Need:
    """Projections, feed-forward networks, experts of the tokens that are kept, and the head."""
    s, t, d, w = model.encoder_length, model.decoder_length, model.d_model, model.inner_dim
    matrices = 3 if model.activation == "geglu" else 2
    projections = model.num_encoder_layers * 4 * s + model.num_decoder_layers * (4 * t + 2 * t + 2 * s)
    dense = sum((model.num_layers(k) - model.num_sparse(k)) * model.length(k) for k in STACKS)
    kept = sum(layer.routed - layer.dropped for layer in record.layers.values())
    rows = sequences * dense + kept
    head = _PASSES * sequences * 2.0 * d * t * model.vocab_size
    others = _PASSES * 2.0 * d * (sequences * w * projections + matrices * model.d_ff * rows)
    return Need(flops=others + head)


def _attention(model: ModelConfig) -> float:
    """FLOPs of one sequence's forward; the decoder's future is not counted out, as nobody leaves it out."""
    s, t = model.encoder_length, model.decoder_length
    return 4.0 * model.inner_dim * (model.num_encoder_layers * s * s + model.num_decoder_layers * (t * t + t * s))


def _norms(model: ModelConfig) -> float:
    """Numbers moved for one sequence: each norm with the addition before it reads two and writes two forward, and as
    many backward."""
    norms = {"encoder": 2 * model.num_encoder_layers + 1, "decoder": 3 * model.num_decoder_layers + 1}
    return 8.0 * model.d_model * sum(norms[stack] * model.length(stack) for stack in STACKS)


def _router(model: ModelConfig, record: StepRecord, sequences: int, size: int) -> Need:
    """Logits in float32; probabilities read and written once each way; tokens copied to their experts and back."""
    tokens = sequences * sum(model.num_sparse(k) * model.length(k) for k in STACKS)
    kept = sum(layer.routed - layer.dropped for layer in record.layers.values())
    table = 4.0 * tokens * model.num_experts * 4
    flops = _PASSES * 2.0 * tokens * model.d_model * model.num_experts
    return Need(wide_flops=flops, bytes=table + 8.0 * kept * model.d_model * size)


def optimizer_bytes(name: str) -> float:
    """Of a parameter in float32. AdamW reads gradient, weight and two moments and writes the last three. Adafactor
    reads gradient and weight and writes the weight. It passes over a matrix three times (mean squares; sizes of update
    and weights; the update): 24 bytes are moved instead of 12 where a matrix does not stay in the cache."""
    return 28.0 if name == "adamw" else 12.0


def _optimizer(config: RunConfig, size: int) -> float:
    """Narrower weights are written besides."""
    parameters = count(param_specs(config.model).values())["total"]
    return parameters * (optimizer_bytes(config.optim.name) + (size if size < 4 else 0))
