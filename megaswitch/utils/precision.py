"""What "float32" means here: at least float32, so that a float64 run holds no float32 anywhere."""

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for narrower types, the type itself for wider ones."""
    return torch.promote_types(dtype, torch.float32)


def widen(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x.to(at_least_float32(x.dtype))


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions for products of that type, rather than converting it back and forth."""
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
