"""Operations on tensors without elements: the shape, strides and type of what comes out follow from those of what goes
in, so that torch is asked but once for each combination (its own answers take most of a played step's time).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class _Same:
    """What an operation gives back is its first argument, changed in place."""


class _New(NamedTuple):
    """What an operation gives back is a new tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Shapes:
    """Carries operations out on tensors of the device "meta"."""

    def __init__(self) -> None:
        self._known: dict[Any, type[_Same] | _New | None] = {}
        self._may_know: dict[Any, bool] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation's result."""
        if func in _IN_ITS_STEAD:
            return _IN_ITS_STEAD[func](func, args, kwargs)
        key = self._key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        known = self._known.get(key, _MISSING)
        if known is _Same:
            return args[0]
        if isinstance(known, _New):
            return torch.empty_strided(known.size, known.stride, dtype=known.dtype, device="meta")
        out = func(*args, **kwargs)
        if known is _MISSING:
            self._known[key] = _described(out, args, kwargs)
        return out

    def _key(self, func: Any, args: Any, kwargs: Any) -> Any:
        """All that a result's shape can depend on; None where the operation is to be carried out each time."""
        may = self._may_know.get(func)
        if may is None:
            may = self._may_know[func] = _may_be_known(func)
        if not may:
            return None
        try:
            parts = _parts(args)
            return (func, parts, _parts(tuple(kwargs.items()))) if kwargs else (func, parts)
        except _Elsewhere:
            return None


_MISSING: Any = object()


class _Elsewhere(Exception):
    """A tensor that has elements is among the arguments."""


def _parts(args: Any) -> tuple[Any, ...]:
    """Arguments as something hashable; of floating-point numbers only that they are."""
    parts: list[Any] = []
    for arg in args:
        if isinstance(arg, Tensor):
            if not arg.is_meta:
                raise _Elsewhere
            parts += (arg.shape, arg.stride(), arg.dtype)
        elif isinstance(arg, list | tuple):
            parts.append(_parts(arg))
        else:
            parts.append(float if isinstance(arg, float) else (type(arg), arg))
    return tuple(parts)


def _may_be_known(func: Any) -> bool:
    """Whether an operation gives back one tensor, new or its first argument, with no change of any shape."""
    returns = func._schema.returns
    if len(returns) != 1 or func.namespace != "aten" or torch.Tag.inplace_view in func.tags:
        return False
    alias = returns[0].alias_info
    return str(returns[0].type) == "Tensor" and (alias is None or alias.is_write)


def _described(out: Tensor, args: Any, kwargs: Any) -> type[_Same] | _New | None:
    """How a result can be made again; None when it shares another tensor's storage."""
    if out is args[0]:
        return _Same
    ours = out.untyped_storage()._cdata
    theirs = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
    if any(arg.untyped_storage()._cdata == ours for arg in theirs):
        return None
    return _New(tuple(out.shape), out.stride(), out.dtype) if out.is_meta else None


def _bincount(func: Any, args: Any, kwargs: Any) -> Tensor:
    """As many counts as are asked for: the code of ours asks for all that there can be."""
    counts: Tensor = args[0].new_empty(kwargs["minlength"] if "minlength" in kwargs else args[2])
    return counts


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Tensor:
    """Without elements torch knows of bfloat16 alone, with them of float32 too: shapes and strides are the same."""
    narrow = [torch.empty_strided(x.shape, x.stride(), dtype=torch.bfloat16, device=x.device) for x in args[:2]]
    out = func(*narrow, *args[2:], **kwargs)
    return torch.empty_strided(out.shape, out.stride(), dtype=args[0].dtype, device=out.device)


_IN_ITS_STEAD: dict[Any, Callable[[Any, Any, Any], Tensor]] = {
    aten.bincount.default: _bincount,
    aten._grouped_mm.default: _grouped_mm,
}
"""What torch cannot do, or does only in part, on tensors without elements."""
