"""FLOPs of products, by what computes them and in which pass.

The formulas are torch's own (`torch.utils.flop_counter`); what torch lacks, grouped products and products in place,
is added here, and our own kernels say theirs. Which part of the model an operation belongs to is known in the forward
from the module that is being called, in the backward from the autograd node that is at work (its number says when it
was made), and of a weight's gradient from the place it is added to.
"""

import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils.flop_counter import flop_registry

from megaswitch.ops.fused.kernels import KERNELS
from megaswitch.ops.library import LIBRARIES
from megaswitch.params.spec import Part

Pass = Literal["forward", "backward", "recompute"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "recompute")
KINDS = ("attention", "dense", "experts", "router", "head", "other")
_KIND_OF: dict[Part, str] = {
    "attn": "attention",
    "dense_ffn": "dense",
    "experts": "experts",
    "router": "router",
    "embed": "head",
    "lm_head": "head",
}
aten = torch.ops.aten


def _grouped(a: Tensor, b: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Rows of all groups, or columns of both where the rows are what is summed over."""
    return 2 * a.shape[-2] * a.shape[-1] * b.shape[-1] * (a.shape[0] if a.dim() == b.dim() == 3 else 1)


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._grouped_mm: _grouped,
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
}
_KERNELS = {kernel.name: kernel.flops for kernel in KERNELS if kernel.flops is not None}


def _formula(func: Any) -> Callable[..., int] | None:
    """FLOPs of an operation from its arguments, if it is a product."""
    if func.namespace in LIBRARIES:
        return _KERNELS.get(func.overloadpacket.__name__)
    return _FLOPS.get(func.overloadpacket)


def _of_pairs(func: Any) -> bool:
    """Whether it is a product that attention has and nothing else."""
    return func.overloadpacket is aten.bmm or func.overloadpacket.__name__.startswith("attention_")


class Modules:
    """Which module is being called, and which part of the model each is."""

    def __init__(self) -> None:
        self.stack: list[nn.Module] = []
        self._part_of: dict[int, Part] = {}
        self._kind_of: dict[int, str] = {}
        self._numbers: list[int] = []
        self._kinds: list[str] = []
        self._handles: list[Any] = []

    def know(self, params: Mapping[str, nn.Parameter], parts: Mapping[str, Part]) -> None:
        """Say which parameters there are and which part of the model each belongs to."""
        self._part_of = {id(param): parts[name] for name, param in params.items()}

    def watch(self) -> None:
        """Begin to be told of every call of a module."""
        self._handles = [
            global_hooks.register_module_forward_pre_hook(self._enter),
            global_hooks.register_module_forward_hook(self._leave, always_call=True),
        ]

    def unwatch(self) -> None:
        """End that."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(module)
        self._mark()

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.stack.pop()
        self._mark()

    def _mark(self) -> None:
        """From this number on autograd's nodes are of what is being called now."""
        self._numbers.append(int(torch._C._autograd._get_sequence_nr()))
        self._kinds.append(self.kind())

    def kind(self) -> str:
        """The kind of the innermost module that is of one kind alone."""
        return next((kind for module in reversed(self.stack) if (kind := self._of(module))), "other")

    def _of(self, module: nn.Module) -> str:
        key = id(module)
        if key not in self._kind_of:
            parts = {self._part_of.get(id(param)) for param in module.parameters()}
            kinds = {_KIND_OF.get(part, "other") for part in parts if part is not None}
            self._kind_of[key] = kinds.pop() if len(kinds) == 1 else ""
        return self._kind_of[key]

    def kind_at(self, number: int) -> str:
        """The kind of what made autograd's node of that number."""
        at = bisect_right(self._numbers, number) - 1
        return self._kinds[at] if at >= 0 else "other"


class _Places:
    """Which part of the model each stretch of the gradients' storage belongs to."""

    def __init__(self) -> None:
        self._starts: dict[int, tuple[list[int], list[str]]] = {}

    def know(self, gradients: Iterable[tuple[Tensor, Part]]) -> None:
        found: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for tensor, part in gradients:
            place = (int(tensor.storage_offset()) * tensor.element_size(), _KIND_OF.get(part, "other"))
            found[tensor.untyped_storage()._cdata].append(place)
        self._starts = {key: ([s for s, _ in sorted(at)], [k for _, k in sorted(at)]) for key, at in found.items()}

    def kind(self, tensor: Tensor) -> str:
        """The kind of what a gradient's tensor is of; empty when it is no gradient's."""
        if not self._starts or tensor.untyped_storage()._cdata not in self._starts:
            return ""
        starts, kinds = self._starts[tensor.untyped_storage()._cdata]
        return kinds[bisect_right(starts, tensor.storage_offset() * tensor.element_size()) - 1]


class Products:
    """Counts FLOPs."""

    def __init__(self) -> None:
        self.flops: dict[tuple[str, Pass], int] = defaultdict(int)
        self.calls: dict[tuple[str, Pass], int] = defaultdict(int)
        self.modules, self.gradients = Modules(), _Places()
        self._last: tuple[weakref.ref[Tensor], tuple[str, Pass], int] | None = None

    def clear(self) -> None:
        """Count from nothing."""
        self.flops.clear()
        self.calls.clear()

    def see(self, func: Any, args: Any, kwargs: Any, out: Any, during: Pass) -> bool:
        """Take note of an operation; whether it is a product."""
        formula = _formula(func)
        if formula is None:
            if func is aten.add_.Tensor and isinstance(args[1], Tensor):
                self._added(args[0], args[1])
            return False
        first = out if isinstance(out, Tensor) else out[0]
        key = (self.gradients.kind(first) or self._kind(func, during), during)
        flops = formula(*args, **kwargs, out_val=out)
        self._count(key, flops, 1)
        self._last = (weakref.ref(first), key, flops)
        return True

    def _count(self, key: tuple[str, Pass], flops: int, calls: int) -> None:
        self.flops[key] += flops
        self.calls[key] += calls

    def _kind(self, func: Any, during: Pass) -> str:
        node = torch._C._current_autograd_node()
        if node is not None and (during == "backward" or not self.modules.stack):
            kind = self.modules.kind_at(node._sequence_nr())
        else:
            kind = self.modules.kind()
        # outside of any single part there are products of activations alone where attention's weights are experts
        return "attention" if kind == "other" and _of_pairs(func) else kind

    def _added(self, into: Tensor, product: Tensor) -> None:
        """The last product is added to a gradient: it is of that gradient's part, whoever computed it."""
        if self._last is None or self._last[0]() is not product or not (kind := self.gradients.kind(into)):
            return
        _, key, flops = self._last
        self._count(key, -flops, -1)
        self._count((kind, key[1]), flops, 1)
        self._last = None
