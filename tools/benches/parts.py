"""Which part of the model an operation belongs to, forward and backward.

Methods of layers open a scope in torch's profile. An operation belongs to the innermost scope around it; what the
backward does belongs to the scope of the forward operation that made its node, which the profile tells by sequence
numbers.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

from torch.profiler import record_function

from megaswitch.layers.attention import Attention
from megaswitch.layers.context import dropout
from megaswitch.layers.expert_attention import ExpertAttention
from megaswitch.layers.feed_forward import FeedForward
from megaswitch.layers.head import Head
from megaswitch.layers.linear import Linear
from megaswitch.layers.moe.experts import Experts
from megaswitch.layers.moe.layer import SwitchLayer
from megaswitch.layers.norm import Norm
from megaswitch.layers.relative_bias import RelativeBias
from megaswitch.model.stage import Stage
from megaswitch.optim.adafactor import Adafactor
from megaswitch.optim.adamw import AdamW
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.clip import gradient_squares
from megaswitch.train.system import System

STEP = "part:rest"
_MARK, _NODE = "part:", "autograd::engine::evaluate_function: "
_CLASSES = {
    Attention: "attention",
    ExpertAttention: "attention",
    RelativeBias: "attention",
    Linear: "products",
    Head: "products",
    FeedForward: "activation",
    Experts: "experts",
    SwitchLayer: "router",
    Norm: "norms",
}
"""Layers whose methods are a part; inner ones come before outer ones."""
_METHODS = {
    (Stage, "_loss"): "cross-entropy",
    (Buckets, "zero_grad"): "optimizer",
    (AdamW, "step"): "optimizer",
    (Adafactor, "step"): "optimizer",
}
_FUNCTIONS = {dropout: "dropout", gradient_squares: "optimizer"}
_ACTIVATIONS = ("relu", "threshold", "gelu", "geglu", "mul", "clamp_min")
"""Operations inside the experts that are no products, nor of their making."""
_PRODUCTS = ("times", "wide_times", "add_outer_", "add_grouped_", "grouped_", "mm", "addmm", "matmul")
"""Operations of a dense network's hidden units, and of the losses with the head, that are products."""


def marked(system: System) -> System:
    """A system whose dropout opens a scope wherever a layer calls it."""
    return replace(system, ops=replace(system.ops, dropout=_marked(system.ops.dropout, "dropout")))


@contextmanager
def scopes() -> Iterator[None]:
    """Inside, layers open their scopes."""
    with ExitStack() as undo:
        for owner, name, part in _targets():
            plain = getattr(owner, name)
            setattr(owner, name, _marked(plain, part))
            undo.callback(setattr, owner, name, plain)
        yield


def _targets() -> list[tuple[Any, str, str]]:
    found: list[tuple[Any, str, str]] = []
    for owner, part in _CLASSES.items():
        own = [name for name, value in vars(owner).items() if callable(value) and not name.startswith("__")]
        found += [(owner, name, part) for name in own]
    found += [(owner, name, part) for (owner, name), part in _METHODS.items()]
    for name, module in list(sys.modules.items()):
        if name.startswith("megaswitch."):
            of_function = [(k, f) for k, v in vars(module).items() for f in _FUNCTIONS if v is f]
            found += [(module, k, _FUNCTIONS[f]) for k, f in of_function]
    return found


def _marked(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(_MARK + part):
            return function(*args, **kwargs)

    return inside


def operations(events: Iterable[Any]) -> dict[tuple[str, str], tuple[int, float]]:
    """Calls and seconds by part and operation, of a profile's events inside the outermost scope, once each."""
    every = list(events)
    nodes = _scopes_of_nodes(every)
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for event in every:
        scope = _scope(event, nodes)
        if scope is not None:
            key = (_part(scope, event.name), event.name)
            calls, seconds = found.get(key, (0, 0.0))
            found[key] = (calls + 1, seconds + event.self_cpu_time_total * 1e-6)
    return found


def _scopes_of_nodes(events: Iterable[Any]) -> dict[int, str]:
    """The scope in which each node of the backward was made: of the operations that name its number, the last one is
    what made it."""
    latest: dict[int, tuple[float, str]] = {}
    for event in events:
        if event.sequence_nr < 0 or event.name.startswith(_NODE):
            continue
        scope = _scope(event, None)
        if scope is not None and event.time_range.start >= latest.get(event.sequence_nr, (0.0, ""))[0]:
            latest[event.sequence_nr] = (event.time_range.start, scope)
    return {number: scope for number, (_, scope) in latest.items()}


def _scope(event: Any, nodes: dict[int, str] | None) -> str | None:
    """The innermost scope; None outside of all, and in the backward where `nodes` are not known yet."""
    while event is not None:
        if event.name.startswith(_MARK) and event.name != STEP:
            return str(event.name.removeprefix(_MARK))
        if event.name.startswith(_NODE):
            return None if nodes is None else nodes.get(event.sequence_nr, "rest")
        if event.name == STEP:
            return "rest"
        event = event.cpu_parent
    return None


def _part(scope: str, operation: str) -> str:
    plain = operation.rpartition("::")[2]
    if scope == "experts":
        return "activation" if plain.startswith(_ACTIVATIONS) else "products"
    return "products" if scope in ("activation", "cross-entropy") and plain.startswith(_PRODUCTS) else scope
