"""The one place where a tensor's values are read by the host, so that such stops can be found, counted and answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Answer = Callable[[str, Tensor], list[Any]]
"""What answers a read of this kind instead of the device: values as (nested) lists of the tensor's shape."""

_ANSWER: ContextVar[Answer | None] = ContextVar("host_read", default=None)


@contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Inside, `answer` is asked for the values of tensors: they may have none, or it may want to see them pass."""
    token = _ANSWER.set(answer)
    try:
        yield
    finally:
        _ANSWER.reset(token)


def host_read(kind: str, tensor: Tensor) -> list[Any]:
    """The values of `tensor` as (nested) lists; waits for the device. `kind` names the read in a profile."""
    answer = _ANSWER.get()
    with torch.profiler.record_function(f"host_read:{kind}"):
        values: list[Any] = tensor.tolist() if answer is None else answer(kind, tensor)
    return values
