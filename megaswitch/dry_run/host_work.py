"""What a step asks of the host, which launches operations one by one and now and then waits for values.

An operation counts, once for each call, where torch dispatches it (below autograd) and it works on elements: one that
gives a view, changes shapes alone, or allocates and leaves what is there, launches nothing. A collective is one, and so
is a kernel of ours; what is launched inside of one operation is its own affair. What travels between host and device
is not counted: the micro-batch and small tables on their way there, and what is read on its way back. A read is a call
of `utils.host.host_read`.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from megaswitch.utils.host import Answer

PARTS = ("forward", "recompute", "backward", "optimizer", "other")
"""Of a step: "optimizer" with the gathering of its weights; "other" is in no pass: reduction of gradients, their norm,
the record."""
_PART_OF = {"publish": "optimizer", "": "other"}
aten = torch.ops.aten
_ALLOCATING = (
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,  # a view that autograd takes for a tensor of its own
)
_SOURCE = {aten._to_copy: 0, aten.copy_: 1}
"""Which argument is copied."""


def launches(func: Any, args: Any, out: Any) -> bool:
    """Whether an operation works on elements that are on the device already."""
    if func.is_view or torch.Tag.inplace_view in func.tags or func.overloadpacket in _ALLOCATING:
        return False
    if func.namespace == "profiler":  # the name of a stretch of time
        return False
    source = _SOURCE.get(func.overloadpacket)
    return source is None or bool(args[source].device == out.device)


class HostWork:
    """Counts operations launched, by part of the step, and reads of the device, by kind."""

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def clear(self) -> None:
        """Count from nothing."""
        self.launched.clear()
        self.reads.clear()

    def see(self, func: Any, args: Any, out: Any, phase: str) -> None:
        """Take note of an operation in a phase of the step: a pass, "optimizer", "publish", or "" outside of them."""
        if launches(func, args, out):
            self.launched[_PART_OF.get(phase, phase)] += 1

    def counting(self, answer: Answer) -> Answer:
        """`answer`, whose every read is counted."""

        def read(kind: str, tensor: Tensor) -> list[Any]:
            self.reads[kind] += 1
            return answer(kind, tensor)

        return read

    def facts(self) -> dict[str, dict[str, int]]:
        """Plain values: `launched` by part with its `total`, `reads` by kind with theirs."""
        return {
            "launched": {**{part: self.launched[part] for part in PARTS}, "total": self.launched.total()},
            "reads": {**dict(sorted(self.reads.items())), "total": self.reads.total()},
        }
