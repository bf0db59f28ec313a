"""The operations that layers and optimizers call: fields of one object, which `registry.py` fills."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.reference.adafactor import PASSES, Passes
from megaswitch.ops.reference.adamw import AdamStep, adamw_
from megaswitch.ops.reference.attention import attention
from megaswitch.ops.reference.cross_entropy import Statistics, cross_entropy_gradient_, cross_entropy_statistics
from megaswitch.ops.reference.dropout import dropout, features_uniform
from megaswitch.ops.reference.permute import permute, unpermute
from megaswitch.ops.reference.products import PRODUCTS, Products
from megaswitch.ops.reference.rms_norm import add_rms_norm, rms_norm
from megaswitch.ops.reference.router import Routed, route_top1
from megaswitch.ops.reference.routing import Order, Queues, count_choices, lane_order, queue


@dataclass(frozen=True)
class Ops:
    """Operations, each by its definition unless a backend has a faster version.

    Args:
        name: the backend they were taken from.
        products: with weights, and those that give weights' gradients.
        rms_norm: see `reference/rms_norm.py`.
        add_rms_norm: the residual stream's addition and the norm of the sum.
        dropout: by the stateless generator, rows' states given.
        features_uniform: its numbers.
        cross_entropy_statistics: what the losses of tokens are made of, from a part of the vocabulary's logits.
        cross_entropy_gradient_: the losses' gradient, in the logits' place.
        route_top1: softmax, choice and gate, and sums of probabilities for the auxiliary losses.
        queue: positions in the queues of experts.
        count_choices: tokens of each expert.
        lane_order: the order of tokens by expert.
        permute: rows of tokens in that order.
        unpermute: the way back, under their gates.
        attention: softmax attention with the biases of relative positions.
        adafactor: the optimizer's passes over gradients and weights.
        adamw_: the other optimizer's one.
    """

    name: str = "reference"
    products: Products = PRODUCTS
    rms_norm: Callable[[Tensor, Tensor], Tensor] = rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = add_rms_norm
    dropout: Callable[[Tensor, Tensor, float, int], Tensor] = dropout
    features_uniform: Callable[[Tensor, int, int], Tensor] = features_uniform
    cross_entropy_statistics: Callable[[Tensor, Tensor], Statistics] = cross_entropy_statistics
    cross_entropy_gradient_: Callable[[Tensor, Tensor, Tensor, Tensor, float], None] = cross_entropy_gradient_
    route_top1: Callable[[Tensor, Tensor | None, Tensor, Tensor, int], Routed] = route_top1
    queue: Callable[[Tensor, int], Queues] = queue
    count_choices: Callable[[Tensor, int], Tensor] = count_choices
    lane_order: Callable[[Tensor, int], Order] = lane_order
    permute: Callable[[Tensor, Tensor, Tensor], Tensor] = permute
    unpermute: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = unpermute
    attention: Callable[[Tensor, Tensor, Tensor, Bias, Drop | None], Tensor] = attention
    adafactor: Passes = PASSES
    adamw_: Callable[[Tensor, Tensor, Tensor, Tensor, AdamStep], None] = adamw_

    def replaced(self) -> list[str]:
        """Names of the operations that are not plain torch's."""
        default = Ops()
        names = [f.name for f in fields(self) if f.name != "name"]
        return [name for name in names if getattr(self, name) is not getattr(default, name)]


BY_DEFINITION = Ops()
