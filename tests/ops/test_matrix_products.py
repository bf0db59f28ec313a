"""Products of whole and broken panels and of several blocks of rows, columns and depth, shared by threads."""

import pytest
import torch
from ops.libraries import INTERPRETED, each, far, load, numbers

from megaswitch.ops.reference.activation import geglu

F32, BF16 = torch.float32, torch.bfloat16
SUMMED, ROUNDED = 2e-5, 4e-3
"""Agreement of sums in float32, and of a number rounded once to bfloat16."""

SHAPES = {
    "one": (1, 2, 1),
    "nothing along": (3, 0, 5),
    "no rows": (0, 4, 5),
    "no columns": (3, 4, 0),
    "less than a panel": (5, 7, 9),
    "panels and more": (70, 130, 200),
    "blocks": (1100, 600, 700),
    "deep": (9, 5001, 130),
}

FEATURES = torch.cpu.get_capabilities()
OURS = torch.backends.cpu.get_cpu_capability() == "AVX512"  # elsewhere products are torch's
PAIRS = OURS and FEATURES.get("avx512_bf16", False) and not FEATURES.get("amx_bf16", False)

pytestmark = pytest.mark.skipif(INTERPRETED, reason="on a CPU")


def sides(case, dtype, transposed=False):
    """x, the rows' two counts, and W, stored as it is used or across."""
    n, i, o = SHAPES[case]
    x, weight = numbers(n, i, seed=0, dtype=dtype), numbers(i, o, seed=1, dtype=dtype)
    return x, [n // 3, n - n // 3], weight.t().contiguous().t() if transposed else weight


def results(case, dtype, transposed=False):
    """x W, in float32 too and by W and -W, and 1 + x^T x W of all rows and of some each."""
    kernels, (x, counts, weight) = load("cpp"), sides(case, dtype, transposed)
    out = kernels.times(x, weight)
    of_one, of_each = torch.ones(weight.shape), torch.ones(2, *weight.shape)
    kernels.add_outer_(of_one, x, out)
    kernels.add_grouped_(of_each, x, out, counts)
    pair = torch.stack((weight.mT, -weight.mT)).mT if transposed else torch.stack((weight, -weight))
    return out, kernels.wide_times(x, weight), kernels.grouped_times(x, pair, counts), of_one, of_each


def activated(case, dtype):
    """max(x W, 0), and GEGLU by W as the gate's matrix and its negative, with both products."""
    kernels, (x, counts, weight) = load("cpp"), sides(case, dtype)
    gates, weights = torch.stack((weight, weight)), torch.stack((-weight, -weight))
    return kernels.grouped_relu(x, gates, counts), *kernels.grouped_geglu(x, gates, weights, counts)


def agree(expected, found, bound):
    assert expected.shape == found.shape
    assert expected.numel() == 0 or far(expected, found.double()) < bound


@each(case=SHAPES, dtype=[F32, BF16], transposed=[False, True])
def test_products_of_any_shape(case, dtype, transposed):
    x, counts, weight = sides(case, dtype, transposed)
    out, wide, grouped, of_one, of_each = results(case, dtype, transposed)
    once = SUMMED if dtype == F32 else ROUNDED
    x, weight = x.double(), weight.double()
    (first, second), outs = x.split(counts), out.double().split(counts)
    agree(x @ weight, out, once)
    agree(x @ weight, wide, SUMMED)
    agree(torch.cat((first @ weight, second @ -weight)), grouped, once)
    parts = torch.stack((first.T @ outs[0], second.T @ outs[1]))
    agree(1 + parts.sum(0), of_one, once)
    agree(1 + parts, of_each, once)


@pytest.mark.skipif(not PAIRS, reason="the processor does not multiply pairs of bfloat16")
@each(case=SHAPES)
def test_gradients_are_not_rounded(case):
    x, *_ = sides(case, BF16)
    out, _, _, of_one, _ = results(case, BF16)
    agree(1 + x.double().T @ out.double(), of_one, SUMMED)


@each(case=SHAPES, dtype=[F32, BF16])
def test_activations_in_the_product(case, dtype):
    x, _, weight = sides(case, dtype)
    out, once = x.double() @ weight.double(), SUMMED if dtype == F32 else ROUNDED
    positive, hidden, of_gate, of_x = activated(case, dtype)
    agree(out.relu(), positive, once)
    agree(out, of_gate, once)
    agree(-out, of_x, once)
    agree(geglu(of_gate.double(), of_x.double()), hidden, once)


@each(dtype=[F32, BF16], case=["less than a panel", "panels and more", "blocks"])
def test_threads_do_not_change_a_number(world, dtype, case):
    """In a child, since a process that has used two threads cannot be forked."""

    def work():
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append((*results(case, dtype), *activated(case, dtype)))
        return all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more, strict=True))

    assert world(1, work) == [True]


@pytest.mark.skipif(not OURS, reason="torch's products do depend")
@each(dtype=[F32, BF16])
def test_a_row_does_not_depend_on_the_others(dtype):
    """So experts compute the same numbers whichever tokens came along."""
    x, _, weight = sides("panels and more", dtype)
    whole = load("cpp").times(x, weight)
    assert all(torch.equal(whole[i : i + 1], load("cpp").times(x[i : i + 1], weight)) for i in (0, 7, len(x) - 1))


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="a gradient is 3 x 4 and not 3 x 5"):
        load("cpp").add_outer_(torch.zeros(3, 5), torch.ones(2, 3), torch.ones(2, 4))
