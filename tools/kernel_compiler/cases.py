"""Every operation as a model of realistic size calls it: tensors have shapes and types alone.

B sequences, L tokens, D d_model, V the vocabulary, N tokens, E experts, F the width of a feed-forward layer, H heads,
K width of a head.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from megaswitch.ops.triton.kernels import IMPLEMENTATIONS

BF16, F32 = torch.bfloat16, torch.float32
B, L, D, F, E, V, H, K = 8, 512, 768, 3072, 16, 32128, 12, 64
N = B * L


def on_paper(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Names of operations and calls of them."""
    for dtype in (BF16, F32):
        yield from _activations(dtype)
        yield from _attention(dtype)
        yield from _optimizer(dtype)
        yield from _experts(dtype)
    yield from _routing()


def _case(name: str, *args: object) -> tuple[str, Callable[[], object]]:
    return name, partial(IMPLEMENTATIONS[name], *args)


def _activations(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    x, w, rstd = on_paper(B, L, D, dtype=dtype), on_paper(D), on_paper(N)
    yield _case("add_rms_norm_forward", x, None, w, 1e-6)
    yield _case("add_rms_norm_forward", x, x, w, 1e-6)
    yield _case("rms_norm_backward", x, x, x, w, rstd)
    states = on_paper(N, dtype=torch.int64)
    yield _case("dropout", on_paper(N, D, dtype=dtype), states, 0.1, 0)
    yield _case("jitter", on_paper(N, D, dtype=dtype), states, 0.01)
    yield _case("features_uniform", states, 0, E)
    logits, target = on_paper(N, V, dtype=dtype), on_paper(N, dtype=torch.int64)
    yield _case("cross_entropy_statistics", logits, target)
    wide_logits = on_paper(N, V, dtype=torch.float32)
    yield _case("cross_entropy_gradient", wide_logits, target, rstd, rstd, 1e-4, logits)


def _attention(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """The encoder's (distances, padding, dropout) and the decoder's (distances, causal, packed sequences)."""
    x, stats, distances = on_paper(B, L, H, K, dtype=dtype), on_paper(2, B, H, L), on_paper(H, 2 * L - 1)
    real, segment = on_paper(B, L, dtype=torch.bool), on_paper(B, L, dtype=torch.int64)
    states = on_paper(B, H, L, dtype=torch.int64)
    for options in (
        (distances, real, None, None, False, states, 0.1),
        (distances, None, segment, segment, True, None, 0.0),
    ):
        yield _case("attention_forward", x, x, x, *options)
        yield _case("attention_backward", x, x, x, x, x, stats, *options)


def _routing() -> Iterator[tuple[str, Callable[[], object]]]:
    """128 experts, and 2,048."""
    group, real, one = on_paper(N, dtype=torch.int64), on_paper(N, dtype=torch.bool), on_paper(N)
    for experts in (128, 2048):
        logits = on_paper(N, experts)
        for choices in (1, 2):
            yield _case("route_forward", logits, None, None, 0.0, logits, group, real, 2, True, choices)
            chosen, grads = on_paper(N, choices, dtype=torch.int64), (on_paper(N, choices), one, on_paper(2, experts))
            yield _case("route_backward", logits, one, chosen, group, real, *grads)
        index = on_paper(8, L, dtype=torch.int64)
        yield _case("queue", index, experts)
        yield _case("count_choices", index.unsqueeze(2), experts)
        yield _case("lane_order", group, experts + 1)
    for dtype in (BF16, F32):
        for of_matrix in {F32, dtype}:
            x, matrix = on_paper(N, D, dtype=dtype), on_paper(D, 128, dtype=of_matrix)
            yield _case("route_forward", x, matrix, group, 0.01, None, group, real, 2, True, 1)
        rows, gate = on_paper(N, D, dtype=dtype), on_paper(N, 1, dtype=dtype)
        yield _case("collect_rows", rows, gate, group, 1)
        yield _case("collect_rows_backward", rows, rows, gate, group)


def _experts(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Products with matrices as they are and across, of many rows an expert and of few."""
    x, h, weight = (on_paper(*shape, dtype=dtype) for shape in ((N, D), (N, F), (E, D, F)))
    counts = [N // E] * E
    for rows in (counts, [N // (8 * E)] * E):
        few, wide = x[: sum(rows)], h[: sum(rows)]
        yield _case("grouped_relu", few, weight, rows)
        yield _case("grouped_times", wide, weight.mT, rows)
        yield _case("grouped_geglu", few, weight, weight, rows)
    yield _case("add_grouped_", on_paper(E, D, F), x, h, counts)
    yield _case("geglu_gradient_", h, h, h)


def _optimizer(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    grad, weights, rows, cols = on_paper(E, D, F, dtype=dtype), on_paper(E, D, F), on_paper(E, D), on_paper(E, F)
    yield _case("adafactor_mean_squares_", rows, cols, grad, F, D, 1e-30)
    yield _case("adafactor_squares_", on_paper(2, E), weights, grad, rows, cols)
    yield _case("adafactor_apply_", weights, grad, rows, cols, on_paper(E))
    flat = on_paper(N * 8)
    narrow = flat.to(dtype)
    rounded = narrow if dtype == BF16 else None
    yield _case("adamw_", flat, narrow, narrow, narrow, rounded, 0.1, 0.9, 0.99, 1e-8, 0.0, 1)
    yield _case("adafactor_moments_", flat, on_paper(2, 1), flat, flat.to(dtype), 0.9, 1e-30)
    yield _case("adafactor_apply_moments_", flat, flat.to(dtype), flat, on_paper(1))
