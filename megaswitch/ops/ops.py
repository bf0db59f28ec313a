"""The operations that layers and optimizers call: fields of one object, which `registry.py` fills.

B sequences, L tokens, D d_model, N rows, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from torch import Tensor, dtype

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.reference.adafactor import PASSES, Passes
from megaswitch.ops.reference.adamw import AdamStep, adamw_
from megaswitch.ops.reference.attention import attention
from megaswitch.ops.reference.cross_entropy import Statistics, cross_entropy_gradient, cross_entropy_statistics
from megaswitch.ops.reference.dropout import RowDrop, dropout, features_uniform, jitter
from megaswitch.ops.reference.permute import permute, unpermute
from megaswitch.ops.reference.products import PRODUCTS, Products
from megaswitch.ops.reference.random import states
from megaswitch.ops.reference.rms_norm import add_rms_norm, rms_norm
from megaswitch.ops.reference.router import Jitter, Routed, Scored, route, route_gradient, tokens_gradient
from megaswitch.ops.reference.routing import Order, Queues, count_choices, lane_order, queue


@dataclass(frozen=True)
class Joint:
    """Dropout in one pass with what stands next to it (see `compiled.py`): the methods of `Ops` of these names, with
    the parts of a `RowDrop` as arguments of their own."""

    residual: Callable[[Tensor, Tensor, Tensor, float, int], Tensor]
    residual_norm: Callable[[Tensor, Tensor, Tensor, float, int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ops:
    """Operations, each by its definition unless a backend has a faster version.

    Args:
        name: the backend they were taken from.
        products: with weights, and those that give weights' gradients.
        rms_norm: see `reference/rms_norm.py`.
        add_rms_norm: the residual stream's addition and the norm of the sum.
        states: of the stateless generator, from a key's and counters.
        dropout: by the stateless generator, rows' states given.
        jitter: multiplication by numbers near 1, likewise.
        features_uniform: its numbers.
        cross_entropy_statistics: what the losses of tokens are made of, from a part of the vocabulary's logits.
        cross_entropy_gradient: the losses' gradient, in the logits' place where they are given as that.
        route: jitter, logits, softmax, choices, gates, places in queues, and sums of probabilities for the auxiliary
            losses.
        route_gradient: that of the logits.
        tokens_gradient: that of the tokens, from the logits'.
        queue: positions in the queues of experts, of choices that are known otherwise.
        count_choices: tokens of each expert.
        lane_order: the order of tokens by expert.
        permute: rows of tokens in that order.
        unpermute: the way back, under their gates.
        attention: softmax attention with the biases of relative positions.
        adafactor: the optimizer's passes over gradients and weights.
        adamw_: the other optimizer's one.
        joint: several of these at once; None: one after the other.
        compiled: names of those that torch.compile makes of their definitions.
    """

    name: str = "reference"
    products: Products = PRODUCTS
    rms_norm: Callable[[Tensor, Tensor], Tensor] = rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = add_rms_norm
    states: Callable[[Tensor, Sequence[Tensor]], Tensor] = states
    dropout: Callable[[Tensor, Tensor, float, int], Tensor] = dropout
    jitter: Callable[[Tensor, Tensor, float], Tensor] = jitter
    features_uniform: Callable[[Tensor, int, int], Tensor] = features_uniform
    cross_entropy_statistics: Callable[[Tensor, Tensor], Statistics] = cross_entropy_statistics
    cross_entropy_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, float, Tensor], None] = cross_entropy_gradient
    route: Callable[[Scored, Tensor | None, Tensor, Tensor, int, bool, int], Routed] = route
    route_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = route_gradient
    tokens_gradient: Callable[[Tensor, Tensor, Jitter | None, dtype], Tensor] = tokens_gradient
    queue: Callable[[Tensor, int], Queues] = queue
    count_choices: Callable[[Tensor, int], Tensor] = count_choices
    lane_order: Callable[[Tensor, int], Order] = lane_order
    permute: Callable[[Tensor, Tensor, Tensor], Tensor] = permute
    unpermute: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = unpermute
    attention: Callable[[Tensor, Tensor, Tensor, Bias, Drop | None], Tensor] = attention
    adafactor: Passes = PASSES
    adamw_: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, AdamStep], None] = adamw_
    joint: Joint | None = None
    compiled: tuple[str, ...] = ()

    def dropped(self, x: Tensor, drop: RowDrop | None) -> Tensor:
        """`x` [..., F] with dropout of its rows; None: as it is."""
        if drop is None:
            return x
        rows_NF = x.flatten(0, -2)
        return self.dropout(rows_NF, drop.states_N, drop.rate, drop.first_feature).view(x.shape)

    def residual(self, x_BLD: Tensor, y_BLD: Tensor, drop: RowDrop | None) -> Tensor:
        """The residual stream x + y, with dropout of y."""
        if drop is not None and self.joint is not None:
            return self.joint.residual(x_BLD, y_BLD, *drop)
        return x_BLD + self.dropped(y_BLD, drop)

    def residual_norm(
        self, x_BLD: Tensor, y_BLD: Tensor, w_D: Tensor, drop: RowDrop | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and its norm."""
        if drop is not None and self.joint is not None:
            return self.joint.residual_norm(x_BLD, y_BLD, *drop, w_D)
        return self.add_rms_norm(x_BLD, self.dropped(y_BLD, drop), w_D)

    @property
    def keeps_attention_weights(self) -> bool:
        """Whether attention keeps its weights [B, H, Q, M] for the backward: plain torch does, compiled or not."""
        return self.attention is attention or "attention" in self.compiled

    def replaced(self) -> list[str]:
        """Names of the operations that are the backend's and not plain torch's."""
        default, others = Ops(), ("name", "joint", "compiled", *self.compiled)
        names = [f.name for f in fields(self) if f.name not in others]
        return [name for name in names if getattr(self, name) is not getattr(default, name)]


BY_DEFINITION = Ops()
