"""What a module of this folder gives: `cases(size)`, each a piece of work that can be done in several ways."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benches.timing import Work
from megaswitch.ops.ops import Ops

Make = Callable[[], Work]
COMPILED = "torch.compile"
"""The name of what torch.compile makes of the definition: half a minute before its first round."""


@dataclass(frozen=True)
class Size:
    """How large inputs are (`quick`: tiny), and their type."""

    quick: bool
    dtype: torch.dtype

    def of(self, full: int, tiny: int) -> int:
        """One of two numbers."""
        return tiny if self.quick else full


@dataclass(frozen=True)
class Case:
    """Work and its alternatives.

    Args:
        name: the operation and its size.
        ours: makes the work with given implementations.
        uses: names of the operations of `Ops` that it goes through; none: there is only the definition.
        libraries: makes the same work by other means, by name.
        unequal: likewise, but what does less (or something else) and is only shown.
        bytes: what it cannot avoid to read and write; `updated`: in place.
        flops: of its products.
        units: divides the time, for figures by element; `unit` is their name.
    """

    name: str
    ours: Callable[[Ops], Work]
    uses: tuple[str, ...]
    libraries: Mapping[str, Make]
    unequal: Mapping[str, Make] = field(default_factory=dict)
    bytes: float = 0.0
    updated: float = 0.0
    flops: float = 0.0
    units: float = 1e-3
    unit: str = "ms"


def forward_backward(function: Callable[..., Any], leaves: Sequence[Tensor], more: Sequence[Any] = ()) -> Work:
    """function(*leaves, *more) and the gradients of those of `leaves` that want one."""
    grads: list[Tensor] = []
    wanted = [leaf for leaf in leaves if leaf.requires_grad]

    def work() -> None:
        out = function(*leaves, *more)
        outputs = [out] if isinstance(out, Tensor) else list(out)
        if not grads:
            grads.extend(torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o.dtype) for o in outputs)
        torch.autograd.grad(outputs, wanted, grads)

    return work


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """A leaf of random numbers."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()
