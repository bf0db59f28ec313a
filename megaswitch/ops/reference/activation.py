"""Activations of the feed-forward networks."""

from torch import Tensor
from torch.nn import functional as F


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


def geglu(gate: Tensor, x: Tensor) -> Tensor:
    """gelu(gate) * x with the tanh approximation (T5 v1.1)."""
    return F.gelu(gate, approximate="tanh") * x
