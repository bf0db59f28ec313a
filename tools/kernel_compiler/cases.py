"""Every operation as a model of realistic size calls it: tensors have shapes and types alone.

B sequences, L tokens, D d_model, V the vocabulary, N tokens, E experts, F the width of a feed-forward layer.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from megaswitch.ops.triton.kernels import IMPLEMENTATIONS

BF16, F32 = torch.bfloat16, torch.float32
B, L, D, F, E, V = 8, 512, 768, 3072, 16, 32128
N = B * L


def on_paper(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Names of operations and calls of them."""
    for dtype in (BF16, F32):
        yield from _activations(dtype)
        yield from _optimizer(dtype)


def _case(name: str, *args: object) -> tuple[str, Callable[[], object]]:
    return name, partial(IMPLEMENTATIONS[name], *args)


def _activations(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    x, w, rstd = on_paper(B, L, D, dtype=dtype), on_paper(D), on_paper(N)
    yield _case("add_rms_norm_forward", x, None, w, 1e-6)
    yield _case("add_rms_norm_forward", x, x, w, 1e-6)
    yield _case("rms_norm_backward", x, x, x, w, rstd)
    states = on_paper(N, dtype=torch.int64)
    yield _case("dropout", on_paper(N, D, dtype=dtype), states, 0.1, 0)
    yield _case("features_uniform", states, 0, E)
    logits, target = on_paper(N, V, dtype=dtype), on_paper(N, dtype=torch.int64)
    yield _case("cross_entropy_statistics", logits, target)
    yield _case("cross_entropy_gradient_", logits, target, rstd, rstd, 1e-4)


def _optimizer(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    grad, weights, rows, cols = on_paper(E, D, F, dtype=dtype), on_paper(E, D, F), on_paper(E, D), on_paper(E, F)
    yield _case("adafactor_mean_squares_", rows, cols, grad, F, D, 1e-30)
    yield _case("adafactor_squares_", on_paper(2, E), weights, grad, rows, cols)
    yield _case("adafactor_apply_", weights, grad, rows, cols, on_paper(E))
    flat = on_paper(N * 8)
    yield _case("adafactor_moments_", flat, on_paper(2, 1), flat, flat.to(dtype), 0.9, 1e-30)
    yield _case("adafactor_apply_moments_", flat, flat.to(dtype), flat, on_paper(1))
