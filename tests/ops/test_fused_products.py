"""Products with the activation among them, by experts' matrices and by one, against plain float64."""

import pytest
import torch
from ops.libraries import DTYPES, INTERPRETED, LIBRARIES, ROUNDING, each, far, gradients, load, numbers
from torch import nn, relu

from megaswitch.layers.weight_work import WeightWork, hidden_units
from megaswitch.ops.fused.products import cpu_products, gpu_products
from megaswitch.ops.reference.activation import geglu
from megaswitch.ops.reference.products import PRODUCTS, add_grouped_, geglu_gradient_, grouped_times

COUNTS = {"some each": [3, 0, 5, 1], "one": [70], "none at all": [0, 0], "a tile and more": [0, 130, 7]}


def products(library):
    return (gpu_products if INTERPRETED else cpu_products)(load(library))


def plain(x, weights, gates, counts):
    """What the hidden units are, expert by expert."""
    parts = []
    for e, rows in enumerate(x.split(counts)):
        parts.append(relu(rows @ weights[e]) if gates is None else geglu(rows @ gates[e], rows @ weights[e]))
    return torch.cat(parts)


@each(library=[*LIBRARIES, "torch"], dtype=DTYPES, gated=[False, True], case=COUNTS)
def test_hidden_units(library, dtype, gated, case):
    counts, work = COUNTS[case], WeightWork(PRODUCTS if library == "torch" else products(library))
    shapes = [(sum(counts), 33), *[(len(counts), 33, 50)] * (1 + gated)]
    leaves = [numbers(*s, seed=i, dtype=dtype).requires_grad_() for i, s in enumerate(shapes)]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    grad = numbers(sum(counts), 50, seed=3, dtype=dtype)
    (a,), da = gradients(lambda x, w, g=None: plain(x, w, g, counts), wide, [grad.double()])
    (b,), db = gradients(lambda x, w, g=None: hidden_units(x, w, g, work, counts), leaves, [grad])
    for expected, found in zip((a, *da), (b, *db), strict=True):
        assert found.dtype == dtype
        assert far(expected, found.double()) < ROUNDING[dtype] if expected.numel() else found.shape == expected.shape


@each(library=[*LIBRARIES, "torch"], dtype=DTYPES, gated=[False, True])
def test_one_matrix_and_its_main_gradient(library, dtype, gated):
    """Gradients are work, added to what is there in its own type."""
    work = WeightWork(PRODUCTS if library == "torch" else products(library))
    x = numbers(2, 9, 24, seed=0, dtype=dtype).requires_grad_()
    weights = [nn.Parameter(numbers(24, 40, seed=1 + i, dtype=dtype)) for i in range(1 + gated)]
    for weight in weights:
        weight.main_grad = torch.ones(24, 40, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    grad = numbers(2, 9, 40, seed=4, dtype=dtype)
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, *weights)]
    one = geglu(wide[0] @ wide[2], wide[0] @ wide[1]) if gated else relu(wide[0] @ wide[1])
    out = hidden_units(x, weights[0], weights[1] if gated else None, work)
    assert far(one, out.double()) < ROUNDING[dtype]
    one.backward(grad.double())
    out.backward(grad)
    todo = work.take()
    assert len(todo) == 1 + gated
    for piece in todo:
        piece()
    assert far(wide[0].grad, x.grad.double()) < ROUNDING[dtype]
    for theirs, weight in zip(wide[1:], weights, strict=True):
        assert weight.grad is None
        assert far(theirs.grad + 1, weight.main_grad.double()) < ROUNDING[dtype]


@each(library=LIBRARIES, dtype=DTYPES, case=COUNTS)
def test_matrices_either_way_round(library, dtype, case):
    """Stored as they are used or across, and gradients added to either, and to narrow ones."""
    ours, counts = products(library), COUNTS[case]
    x, grad = numbers(sum(counts), 24, seed=0, dtype=dtype), numbers(sum(counts), 35, seed=1, dtype=dtype)
    for across in (False, True):
        stored = (len(counts), 35, 24) if across else (len(counts), 24, 35)
        weights, into = numbers(*stored, seed=2, dtype=dtype), numbers(*stored, seed=3, dtype=dtype)
        weights, into = (weights.mT, into.mT) if across else (weights, into)
        expected = grouped_times(x.double(), weights.double(), counts)
        if expected.numel():
            assert far(expected, ours.grouped_times(x, weights, counts).double()) < ROUNDING[dtype]
        wanted = into.double()
        add_grouped_(wanted, x.double(), grad.double(), counts)
        ours.add_grouped_(into, x, grad, counts)
        assert far(wanted, into.double()) < ROUNDING[dtype]


@each(library=LIBRARIES, dtype=DTYPES)
def test_gradients_of_geglu_at_extremes(library, dtype):
    gate = torch.tensor([0.0, -0.0, 1e-30, -5.0, 5.0, -12.0, 30.0, -30.0, 1e4, -1e4, 0.7, -0.75], dtype=dtype)
    x, grad = numbers(12, seed=0, dtype=dtype), numbers(12, seed=1, dtype=dtype)
    expected = gate.double().clone(), x.double().clone()
    geglu_gradient_(*expected, grad.double())
    products(library).geglu_gradient_(gate, x, grad)
    for a, b in zip(expected, (gate, x), strict=True):
        assert b.isfinite().all() and far(a, b.double()) < ROUNDING[dtype]


@each(library=LIBRARIES, gated=[False, True])
def test_what_is_not_a_number_stays(library, gated):
    x, weights = numbers(3, 16, seed=0, dtype=torch.float32), numbers(1, 16, 16, seed=1, dtype=torch.float32)
    x[1, 2] = float("nan")
    found = hidden_units(x, weights, weights if gated else None, WeightWork(products(library)), [3])
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@pytest.mark.skipif(INTERPRETED, reason="of a CPU: vectors and threads")
@each(dtype=DTYPES, rows=[1, 7, 1000])
def test_gradients_of_geglu_of_any_length(dtype, rows):
    """Whatever is left over beside whole vectors and threads, also where what is only read is not contiguous; in place
    there is no other way, and it is said."""
    kernels, parts = load("cpp"), [numbers(rows, 37, 3, seed=i, dtype=dtype)[..., 1] for i in range(3)]
    with pytest.raises(RuntimeError, match="contiguous"):
        kernels.geglu_gradient_(*parts)
    gate, x, grad = (part.double() for part in parts)
    found = [part.contiguous() for part in parts[:2]]
    kernels.geglu_gradient_(*found, parts[2])
    geglu_gradient_(gate, x, grad)
    for a, b in zip((gate, x), found, strict=True):
        assert far(a, b.double()) < ROUNDING[dtype]
