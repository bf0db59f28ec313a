"""torch.compile where no backend has a kernel: what a block computes between its products, kernels and collectives.

Each of these functions is compiled on its own, for all blocks at once: tensors go in and come out, so the graphs are
whole, few, and know nothing of steps, samples or processes. What does not go into a graph: products with activations,
whose weights' gradients are work that is put off, and holds on to tensors that a graph would take for dead and write
over; collectives, which run while other work is done; and kernels, which were measured faster than what comes of their
definitions. The number of rows is a variable of the graph, since experts get another one at every step.

B sequences, L tokens, Q queries, M keys, H heads, K width of a head, D d_model, N rows, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.compiler import refuse_without_compiler
from megaswitch.ops.ops import Joint, Ops
from megaswitch.ops.reference.attention import attention
from megaswitch.ops.reference.dropout import dropout, features_uniform, jitter
from megaswitch.ops.reference.random import states
from megaswitch.ops.reference.rms_norm import add_rms_norm, rms_norm

_MOST_VARIANTS = 64
"""Graphs of one function: by stack, mask, training or not; beyond it the function runs as it is written."""
_LEAST_ROWS = 2
"""torch makes constants of the sizes 0 and 1, which experts with hardly any tokens have now and then."""


def compiled_ops(ops: Ops, compiler: str, device: torch.device) -> Ops:
    """`ops`, with what plain torch does in the layers compiled at its first use; kernels stay.

    `compiler` is a backend of torch.compile. UserError where it cannot work on the device.
    """
    if compiler == "inductor":
        refuse_without_compiler(device)

    def rows(function: Callable[..., Any], number: int) -> Callable[..., Any]:
        return _by_rows(function, compiler, number)

    known = {
        "rms_norm": (rms_norm, rows(rms_norm, 1)),
        "add_rms_norm": (add_rms_norm, rows(add_rms_norm, 2)),
        "dropout": (dropout, rows(dropout, 2)),
        "jitter": (jitter, rows(jitter, 2)),
        "features_uniform": (features_uniform, rows(features_uniform, 1)),
        "states": (states, _states(compiler)),
        "attention": (attention, _attention(compiler)),
    }
    plain: dict[str, Any] = {name: made for name, (by_torch, made) in known.items() if getattr(ops, name) is by_torch}
    joint = Joint(rows(_residual, 3), rows(_residual_norm, 3)) if "dropout" in plain else None
    return replace(ops, **plain, joint=joint, compiled=tuple(plain))


def _compile(function: Callable[..., Any], compiler: str) -> Callable[..., Any]:
    """All sizes but those marked otherwise are constants from the first: a graph that became more general later could
    be the one that a recomputation takes, and it keeps other tensors."""
    made: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        function, dynamic=False, backend=compiler, recompile_limit=_MOST_VARIANTS
    )
    return made


def _residual(x_ND: Tensor, y_ND: Tensor, states_N: Tensor, rate: float, first_feature: int) -> Tensor:
    return x_ND + dropout(y_ND, states_N, rate, first_feature)


def _residual_norm(
    x_ND: Tensor, y_ND: Tensor, states_N: Tensor, rate: float, first_feature: int, w_D: Tensor
) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x_ND, dropout(y_ND, states_N, rate, first_feature), w_D)


def _by_rows(function: Callable[..., Any], compiler: str, number: int) -> Callable[..., Any]:
    """A function of which the first `number` arguments have N rows, for any [..., F] in the place of [N, F]."""
    fast = _compile(function, compiler)

    def call(*args: Any) -> Any:
        shape = args[0].shape
        rows = [_rows(arg) for arg in args[:number]]
        if rows[0].shape[0] < _LEAST_ROWS:
            out = function(*rows, *args[number:])
        else:
            for arg in rows:
                torch._dynamo.mark_dynamic(arg, 0)
            out = fast(*rows, *args[number:])
        if len(shape) <= 2:
            return out
        return out.view(shape) if isinstance(out, Tensor) else tuple(part.view(shape) for part in out)

    return call


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() <= 2 else x.flatten(0, -2)


def _states(compiler: str) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """`reference.random.states`, of any number of the last counter."""
    fast = _compile(states, compiler)

    def call(start: Tensor, counters: Sequence[Tensor]) -> Tensor:
        if counters[-1].shape[0] < _LEAST_ROWS:
            return states(start, counters)
        torch._dynamo.mark_dynamic(counters[-1], 0)
        out: Tensor = fast(start, counters)
        return out

    return call


def _attention(compiler: str) -> Callable[[Tensor, Tensor, Tensor, Bias, Drop | None], Tensor]:
    """`reference.attention.attention`, products and all: it has no weights, and its shapes are the configuration's."""

    def by_definition(
        q: Tensor, k: Tensor, v: Tensor, masks: Any, causal: bool, states_BHQ: Tensor | None, rate: float
    ) -> Tensor:
        by_distance_HR, real_BM, segments = masks
        drop = None if states_BHQ is None else Drop(rate, states_BHQ)
        return attention(q, k, v, Bias(by_distance_HR, causal, real_BM, segments), drop)

    fast = _compile(by_definition, compiler)

    def call(q_BQHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, bias: Bias, dropped: Drop | None) -> Tensor:
        masks = (bias.by_distance_HR, bias.real_BM, bias.segments)
        states_BHQ, rate = (None, 0.0) if dropped is None else (dropped.states_BHQ, dropped.rate)
        out: Tensor = fast(q_BQHK, k_BMHK, v_BMHK, masks, bias.causal, states_BHQ, rate)
        return out

    return call
