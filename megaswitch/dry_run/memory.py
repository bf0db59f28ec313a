"""What tensors take, moment by moment: every storage from the operation that makes it to the release of its last use.

Sizes are those of the elements. What an allocator adds (rounding, fragments), what kernels take for themselves while
they run, and what a device's libraries hold are not in it.
"""

import weakref
from typing import Literal, NamedTuple

from torch import Tensor

Kind = Literal["weights", "gradients", "optimizer", "activations", "buffers"]
KINDS: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "activations", "buffers")
"""What memory is for:

- weights: what layers compute with;
- gradients: where they are added up, and a rank's segments of their sums;
- optimizer: masters and moments;
- activations: what the forward leaves for the backward, and what a recomputation brings back of it;
- buffers: all the rest, most of it short-lived: results on their way, what is sent and received, input gradients.
"""


class Moment(NamedTuple):
    """Bytes by kind (in the order of KINDS) after operation number `operation`, in part `phase` of the step."""

    operation: int
    phase: str
    bytes: tuple[int, ...]


class _Held:
    """One storage that lives."""

    __slots__ = ("kind", "ref", "size")

    def __init__(self, size: int, kind: int, ref: "weakref.ref[object]") -> None:
        self.size, self.kind, self.ref = size, kind, ref


class Memory:
    """Follows storages and keeps the course of their sums."""

    def __init__(self) -> None:
        self.live = [0] * len(KINDS)
        self.peak = [0] * len(KINDS)
        self.at_peak = tuple(self.live)
        self.course: list[Moment] = []
        self._held: dict[int, _Held] = {}
        self._highest: tuple[int, ...] | None = None

    def start(self) -> None:
        """Begin the course and the peaks from what lives now."""
        self.course, self.peak, self.at_peak = [], list(self.live), tuple(self.live)

    def see(self, tensor: Tensor) -> None:
        """Take note of a tensor, which is a buffer until it is known for something else."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held or (size := storage.nbytes()) == 0:
            return
        kind = KINDS.index("buffers")
        self._held[key] = _Held(size, kind, weakref.ref(storage, lambda _: self._release(key)))
        self._add(kind, size)

    def becomes(self, tensor: Tensor, kind: Kind, only: Kind | None = None) -> None:
        """A tensor's storage is of another kind from now on (if it has been of kind `only`, where that is given)."""
        held = self._held.get(tensor.untyped_storage()._cdata)
        if held is None or (only is not None and KINDS[held.kind] != only):
            return
        self.live[held.kind] -= held.size
        held.kind = KINDS.index(kind)
        self._add(held.kind, held.size)

    def kind_of(self, tensor: Tensor) -> Kind | None:
        """What a tensor's storage is for; None when it has not been seen."""
        held = self._held.get(tensor.untyped_storage()._cdata)
        return None if held is None else KINDS[held.kind]

    def note(self, operation: int, phase: str) -> None:
        """Write down the highest sums since the last note, at the end of an operation."""
        if self._highest is not None:
            self.course.append(Moment(operation, phase, self._highest))
            self._highest = None

    def _add(self, kind: int, size: int) -> None:
        live = self.live
        live[kind] += size
        self.peak[kind] = max(self.peak[kind], live[kind])
        if sum(live) > sum(self.at_peak):
            self.at_peak = tuple(live)
        if self._highest is None or sum(live) > sum(self._highest):
            self._highest = tuple(live)

    def _release(self, key: int) -> None:
        held = self._held.pop(key)
        self.live[held.kind] -= held.size
        if self._highest is None:
            self._highest = tuple(self.live)
