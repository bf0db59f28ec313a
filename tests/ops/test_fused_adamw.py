"""AdamW's kernels against its definition, in every mixture of types."""

import pytest
import torch
from ops.libraries import INTERPRETED, LIBRARIES, ROUNDING, far, load, numbers

from megaswitch.ops.fused import adamw as fused
from megaswitch.ops.reference import adamw as reference
from megaswitch.ops.reference.adamw import AdamStep

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
TYPES = [(F64, F64, F64), (F32, F32, F32), (F32, BF16, F32), (F32, F32, BF16), (F32, BF16, BF16)]
"""Of weights, gradients and moments."""
if not INTERPRETED:  # Triton's interpreter makes zeros of float64 in bfloat16
    TYPES.append((F64, BF16, BF16))


def tensors(size, types, rounded):
    of_weights, of_grads, of_moments = types
    weights, first = numbers(size, seed=0, dtype=of_weights), torch.zeros(size, dtype=of_moments)
    narrow = torch.empty(size, dtype=BF16) if rounded else None
    return weights, numbers(size, seed=1, dtype=of_grads), first, first.clone(), narrow


def by_kernel(kernels, weights, grad, first, second, rounded, step):
    numbers = (step.lr, step.beta1, step.beta2, step.eps, step.weight_decay, step.count)
    kernels.adamw_(weights, grad, first, second, rounded, *numbers)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("size", [0, 1, 37, 3_000 if INTERPRETED else 70_000])
@pytest.mark.parametrize("rounded", [False, True])
def test_updates(library, types, size, rounded):
    kernels = load(library)
    ours, theirs = tensors(size, types, rounded), tensors(size, types, rounded)
    for count in (1, 2, 3):
        step = AdamStep(count, 0.1 / count, 0.9, 0.99, 1e-6, 0.05)
        for x in (ours[1], theirs[1]):
            x.copy_(numbers(size, seed=count, dtype=x.dtype))
        by_kernel(kernels, *ours, step)
        reference.adamw_(*theirs, step)
    if size:
        for a, b in zip(theirs[:4], ours[:4], strict=True):
            narrow = BF16 in (a.dtype, types[2])  # whose roundings, three after each other, come into all of them
            assert far(a, b) < 3 * ROUNDING[BF16 if narrow else a.dtype]
    if rounded and library == "cpp":
        assert torch.equal(ours[4], ours[0].to(BF16))


def test_what_does_not_fit_is_refused():
    kernels, step = load("cpp"), AdamStep(1, 0.1, 0.9, 0.99, 1e-6, 0.0)
    weights, grad, first, second, narrow = tensors(8, (F32, F32, F32), True)
    with pytest.raises(RuntimeError, match="grad: 8 numbers side by side"):
        by_kernel(kernels, weights, grad[:4], first, second, None, step)
    with pytest.raises(RuntimeError, match="bfloat16"):
        by_kernel(kernels, weights, grad, first, second, narrow.float(), step)


@pytest.mark.parametrize("rounded", [False, True])
def test_torchs_form_serves_where_it_has_all_there_is_to_do(rounded):
    """Bit by bit; and what is rounded is what the update left."""
    ours, theirs = (tensors(100, (F32, F32, F32), rounded) for _ in range(2))
    kernels = None if not rounded else load("cpp")
    fused.adamw_(kernels, *ours, AdamStep(1, 0.1, 0.9, 0.99, 1e-6, 0.05))
    reference.adamw_(*theirs, AdamStep(1, 0.1, 0.9, 0.99, 1e-6, 0.05))
    if rounded:
        assert torch.equal(ours[4], ours[0].to(BF16))
    else:
        assert torch.equal(ours[0], theirs[0])
