"""The one place where a tensor's values are read by the host, so that such stops can be found and counted."""

from typing import Any

import torch
from torch import Tensor


def host_read(kind: str, tensor: Tensor) -> list[Any]:
    """The values of `tensor` as (nested) lists; waits for the device. `kind` names the read in a profile."""
    with torch.profiler.record_function(f"host_read:{kind}"):
        values: list[Any] = tensor.tolist()
    return values
