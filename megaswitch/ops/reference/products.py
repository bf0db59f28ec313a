"""Products with weights and those that give weights' gradients, by one matrix or by the matrices of experts.

N rows (sorted by expert where they have experts), I inputs, O outputs; E experts, D inner and F outer width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from megaswitch.ops.reference.activation import geglu
from megaswitch.utils.precision import widen

_GROUPED_TYPES = (torch.float32, torch.bfloat16)
_ALIGNMENT = 16  # bytes that torch's grouped product wants strides to be a multiple of


def times(x: Tensor, weight_IO: Tensor) -> Tensor:
    """x W [..., O]."""
    return x @ weight_IO


def wide_times(x_NI: Tensor, weight_IO: Tensor) -> Tensor:
    """x W [N, O] in at least float32, which no rounding to a narrower type of the operands comes before."""
    if x_NI.is_cuda and x_NI.dtype == torch.bfloat16:
        return torch.mm(x_NI, weight_IO, out_dtype=torch.float32)
    return widen(x_NI) @ widen(weight_IO)


def add_outer_(into_IO: Tensor, rows_NI: Tensor, cols_NO: Tensor) -> None:
    """Add to `into` the product rows^T cols: the gradient of `times`'s matrix."""
    if into_IO.dtype == rows_NI.dtype:
        into_IO.addmm_(rows_NI.t(), cols_NO)
    else:
        into_IO.add_(rows_NI.t() @ cols_NO)


def _aligned(w_EDF: Tensor) -> bool:
    size = w_EDF.element_size()
    return all(w_EDF.shape[dim] * size % _ALIGNMENT == 0 for dim in (1, 2))


def _ends(counts: Sequence[int], device: torch.device) -> Tensor:
    """Where each expert's rows end; the host does not wait for the copy."""
    return torch.tensor(counts).cumsum(0).to(torch.int32).to(device, non_blocking=True)


def grouped_times(x_ND: Tensor, w_EDF: Tensor, counts: Sequence[int]) -> Tensor:
    """[N, F]: the first counts[0] rows times w[0], the next counts[1] times w[1], and so on.

    torch's grouped product where it takes the type and the strides, a loop over experts elsewhere.
    """
    if x_ND.dtype in _GROUPED_TYPES and _aligned(w_EDF) and x_ND.shape[0] > 0:
        ends = _ends(counts, x_ND.device)
        out_NF = F.grouped_mm(x_ND, w_EDF, offs=ends)
        if out_NF.requires_grad:  # its backward refuses expanded gradients
            out_NF.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        return out_NF
    rows = torch.split(x_ND, list(counts))
    return torch.cat([row @ w for row, w in zip(rows, w_EDF.unbind(0), strict=True)])


def add_grouped_(into_EDF: Tensor, x_ND: Tensor, grad_NF: Tensor, counts: Sequence[int]) -> None:
    """Add to into[e] the product of expert e's rows, x^T grad: the gradient of `grouped_times`'s matrices.

    On a GPU one grouped product in bfloat16; elsewhere a product an expert, straight into `into` where types agree.
    """
    if x_ND.is_cuda and x_ND.dtype == torch.bfloat16 and _aligned(into_EDF) and x_ND.shape[0] > 0:
        ends = _ends(counts, x_ND.device)
        into_EDF.add_(F.grouped_mm(x_ND.t(), grad_NF, offs=ends))
        return
    parts = zip(into_EDF.unbind(0), torch.split(x_ND, list(counts)), torch.split(grad_NF, list(counts)), strict=True)
    for into_DF, x_MD, grad_MF in parts:
        if x_MD.shape[0]:
            add_outer_(into_DF, x_MD, grad_MF)


def _either(x: Tensor, weight: Tensor, counts: Sequence[int] | None) -> Tensor:
    return times(x, weight) if counts is None else grouped_times(x, weight, counts)


def relu_times(x: Tensor, weight: Tensor, counts: Sequence[int] | None) -> Tensor:
    """max(x W, 0): `grouped_times` where there are counts, else `times`."""
    return _either(x, weight, counts).relu_()


def geglu_times(
    x: Tensor, gate: Tensor, weight: Tensor, counts: Sequence[int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """GEGLU of x by two matrices, and both products, which its gradient is computed from."""
    of_gate, of_x = _either(x, gate, counts), _either(x, weight, counts)
    return geglu(of_gate, of_x), of_gate, of_x


def geglu_gradient_(of_gate: Tensor, of_x: Tensor, grad: Tensor) -> None:
    """Puts the gradients of both products in their place, from that of `geglu`."""
    d_gate = torch.ops.aten.gelu_backward(grad * of_x, of_gate, approximate="tanh")
    of_x.copy_(grad * F.gelu(of_gate, approximate="tanh"))
    of_gate.copy_(d_gate)


@dataclass(frozen=True)
class Products:
    """What computes them, as the functions above do."""

    times: Callable[[Tensor, Tensor], Tensor] = times
    wide_times: Callable[[Tensor, Tensor], Tensor] = wide_times
    add_outer_: Callable[[Tensor, Tensor, Tensor], None] = add_outer_
    grouped_times: Callable[[Tensor, Tensor, Sequence[int]], Tensor] = grouped_times
    add_grouped_: Callable[[Tensor, Tensor, Tensor, Sequence[int]], None] = add_grouped_
    relu_times: Callable[[Tensor, Tensor, Sequence[int] | None], Tensor] = relu_times
    geglu_times: Callable[[Tensor, Tensor, Tensor, Sequence[int] | None], tuple[Tensor, ...]] = geglu_times
    geglu_gradient_: Callable[[Tensor, Tensor, Tensor], None] = geglu_gradient_


PRODUCTS = Products()
"""torch's own."""
