"""The kernels that fused operations are made of: one schema and one rule of shapes each, several libraries behind.

A library is a namespace of torch operators: "megaswitch_cpp" (compiled for this CPU), "megaswitch_triton" (GPU) and
"megaswitch_shapes" (shapes alone, for the dry run of a machine that is not this one). All answer to meta tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

CPP, TRITON, SHAPES = "megaswitch_cpp", "megaswitch_triton", "megaswitch_shapes"
LIBRARIES = (CPP, TRITON, SHAPES)


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Args:
        name: of the operator in every library.
        schema: its arguments and results, as torch writes them.
        shapes: a function of the same arguments that gives empty results of the right shapes and types.
        flops: floating-point operations of its products, from the same arguments; None where it has none.
    """

    name: str
    schema: str
    shapes: Callable[..., Any]
    flops: Callable[..., int] | None = None


def nothing(*_: Any) -> None:
    """What a kernel gives that works in place."""


@cache
def library(namespace: str, kernels: tuple[Kernel, ...]) -> Any:
    """The operators of a library, defined at the first call; whoever has implementations adds them."""
    for kernel in kernels:
        name = f"{namespace}::{kernel.name}"
        torch.library.define(name, kernel.schema)
        torch.library.register_fake(name, kernel.shapes)
    return getattr(torch.ops, namespace)
