"""Sees every operation that torch carries out, on this process's tensors or in its stead.

The same watch is put over a step that is played (on tensors of the device "meta", which have no elements) and over one
that is run, so that what the one predicts can be held to what the other does. It knows torch, not the model's code.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch.utils._python_dispatch import TorchDispatchMode

from megaswitch.dry_run.host_work import HostWork
from megaswitch.dry_run.memory import Memory
from megaswitch.dry_run.messages import Traffic, message
from megaswitch.dry_run.products import Pass, Products
from megaswitch.dry_run.shapes import Shapes

aten = torch.ops.aten
_RECOMPUTING = "_recomputation_hook"
"""In the name of the hook under which torch recomputes (torch.utils.checkpoint)."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts collectives, products, memory, and what the host does.

    Args:
        played: whether tensors have no elements: then nothing is passed to other processes, and operations whose
            result's shape depends on values are given the shape that the code will cut out of it.
    """

    def __init__(self, *, played: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.played, self.operations, self.phase = played, 0, ""
        self.traffic: dict[tuple[str, str], Traffic] = defaultdict(Traffic)
        self.products, self.memory, self.host = Products(), Memory(), HostWork()
        self._shapes = Shapes()
        self._begun: _Work | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, everything is seen."""
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self.products.modules.watch()
        try:
            with self, hooks:
                yield
        finally:
            self.products.modules.unwatch()

    def start(self) -> None:
        """Forget the counts so far; what lives stays known."""
        self.traffic.clear()
        self.products.clear()
        self.host.clear()
        self.memory.start()
        self.operations = 0

    def _keep(self, tensor: Tensor) -> Tensor:
        """Autograd keeps a tensor for the backward (without its history, which would keep itself alive)."""
        self.memory.becomes(tensor, "activations", only="buffers")
        return tensor.detach() if tensor.requires_grad else tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, self._begun = kwargs or {}, None
        during, recomputing = self._pass()
        if func.namespace == "c10d":
            out = self._collective(func, args, kwargs)
        else:
            out = self._shapes.call(func, args, kwargs) if self.played else func(*args, **kwargs)
        for tensor in (out,) if isinstance(out, Tensor) else _tensors(out):
            self.memory.see(tensor)
        if recomputing and func is aten.detach.default:  # torch puts it where the forward's would have been
            self.memory.becomes(out, "activations", only="buffers")
        product = self.products.see(func, args, kwargs, out, during or "backward")
        self.operations += 1
        phase = during or ("backward" if product else self.phase)
        self.host.see(func, args, out, phase)
        self.memory.note(self.operations, phase)
        return out

    def _pass(self) -> tuple[Pass | None, bool]:
        """The pass through the model that an operation belongs to; none outside of both (where weights' gradients
        may still be computed)."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is not None and _RECOMPUTING in hooks[0].__qualname__:
            return "recompute", True
        if torch._C._current_autograd_node() is not None:
            return "backward", False
        if self.products.modules.stack:
            return "forward", False
        return None, False

    def _collective(self, func: Any, args: Any, kwargs: Any) -> Any:
        told = message(func, args)
        traffic = self.traffic[told.axis, told.op]
        traffic.count += 1
        traffic.bytes += told.bytes
        traffic.wire += told.wire
        if told.op == "reduce_scatter" and self.memory.kind_of(args[1]) == "gradients":
            self.memory.becomes(args[0], "gradients")
        if not self.played:
            return func(*args, **kwargs)
        self._begun = _Work(args)
        work = self._begun.boxed()
        return work if len(func._schema.returns) == 1 else (args[0], work)


class _Work(FakeWork):
    """The handle of a collective that does nothing: as a real one, it holds on to its tensors until it is waited for
    or dropped. The watch holds it until torch has handed it to the caller."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = tensors

    def wait(self, *args: Any, **kwargs: Any) -> bool:
        """Nothing to wait for."""
        self._tensors = None
        return True


def _tensors(out: Any) -> Iterator[Tensor]:
    """All tensors of an operation's result."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, tuple | list):
        for part in out:
            yield from _tensors(part)
