"""GEGLU and its gradients: the kernels of `ops/fused/geglu.py` for the GPU.

gelu(g) = g / (1 + exp(-2 u)) with u = sqrt(2 / pi) (g + 0.044715 g^3), the approximation by tanh. The backward reads
three numbers and writes two (10 bytes in bfloat16, 3 ns for a thousand at 3.35 TB/s) for an exponential and some
20 operations (0.3 and 0.6 ns for a thousand at 16 and 128 a clock on 132 multiprocessors): only bytes count. A program
of 4 warps has 2,048 numbers, 12 KB under way in bfloat16, and four are resident at least, where bandwidth times latency
asks for 15 KB a multiprocessor. The forward is an epilogue of the products: see `grouped.py`.

M numbers.
"""

import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.tune import wide

_BLOCK = 2048


@triton.jit
def sigmoid_of(g):
    """What gelu multiplies its argument by."""
    return tl.sigmoid(1.5957691216057308 * g * (1.0 + 0.044715 * g * g))


@triton.jit
def _gradient(gate, x, grad, M, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = m < M
    d = tl.load(grad + m, mask=inside, other=0.0).to(WIDE)
    g = tl.load(gate + m, mask=inside, other=0.0).to(WIDE)
    value = tl.load(x + m, mask=inside, other=0.0).to(WIDE)
    s = sigmoid_of(g)
    slope = s + g * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * g * g)
    tl.store(gate + m, (d * value * slope).to(gate.dtype.element_ty), mask=inside)
    tl.store(x + m, (d * g * s).to(x.dtype.element_ty), mask=inside)


def geglu_gradient_(gate: Tensor, x: Tensor, grad: Tensor) -> None:
    """See `ops/fused/geglu.py`; gate and x are contiguous."""
    assert gate.is_contiguous() and x.is_contiguous()
    if gate.numel():
        _gradient[(triton.cdiv(gate.numel(), _BLOCK),)](
            gate, x, grad.contiguous(), gate.numel(), WIDE=wide(x.dtype), BLOCK=_BLOCK
        )
