"""The gated activation of the feed-forward networks; the other one, ReLU, is torch's."""

from torch import Tensor
from torch.nn import functional as F


def geglu(gate: Tensor, x: Tensor) -> Tensor:
    """gelu(gate) * x with the tanh approximation (T5 v1.1)."""
    return F.gelu(gate, approximate="tanh") * x
