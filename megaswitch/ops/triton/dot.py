"""Products of tiles, in the digits of their type."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, total=None):
    """a b, added to `total` where there is one."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # whose bits the interpreter multiplies as if they were whole numbers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3")  # float32's digits, but for the last
