"""What is remembered of an operation is what torch itself answers, in place or new, with strides and type."""

import pytest
import torch

from megaswitch.dry_run.shapes import Shapes

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


BF16 = torch.bfloat16
CASES = {
    "sum": (aten.add.Tensor, lambda: (meta(3, 1, dtype=BF16), meta(1, 4))),
    "by a number": (aten.mul.Tensor, lambda: (meta(2, 3, dtype=torch.int64), 0.5)),
    "by a whole number": (aten.mul.Tensor, lambda: (meta(2, 3, dtype=torch.int64), 2)),
    "transposed": (aten.exp.default, lambda: (meta(4, 5).t(),)),
    "product": (aten.mm.default, lambda: (meta(3, 4), meta(5, 4).t())),
    "over a dimension": (aten.sum.dim_IntList, lambda: (meta(3, 4, 5), [1], True)),
    "side by side": (aten.cat.default, lambda: ([meta(2, 3), meta(4, 3)], 0)),
    "cast": (aten._to_copy.default, lambda: (meta(3, 3).t(),)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_second_answer_is_torchs_own(name):
    func, arguments = CASES[name]
    kwargs = {"dtype": BF16} if name == "cast" else {}
    shapes, expected = Shapes(), func(*arguments(), **kwargs)
    for _ in range(3):
        out = shapes.call(func, arguments(), kwargs)
        assert (out.shape, out.stride(), out.dtype, out.device) == (
            *(expected.shape, expected.stride(), expected.dtype),
            torch.device("meta"),
        )


def test_what_is_changed_in_place_and_what_is_seen_stay_themselves():
    shapes, x = Shapes(), meta(4, 6)
    for _ in range(3):
        assert shapes.call(aten.mul_.Tensor, (x, 2.0), {}) is x
        for func, args in ((aten.view.default, (x, [24])), (aten._unsafe_view.default, (x, [24]))):
            seen = shapes.call(func, args, {})
            assert seen.untyped_storage()._cdata == x.untyped_storage()._cdata and seen.shape == (24,)
    turned = shapes.call(aten.transpose_.default, (meta(2, 3), 0, 1), {})
    assert turned.shape == shapes.call(aten.transpose_.default, (meta(2, 3), 0, 1), {}).shape == (3, 2)


def test_shapes_that_depend_on_values_are_those_that_are_asked_for():
    counts = Shapes().call(aten.bincount.default, (meta(100, dtype=torch.int64), None, 9), {})
    assert counts.shape == (9,) and counts.dtype == torch.int64
    narrow = Shapes().call(aten._grouped_mm.default, (meta(8, 16), meta(2, 16, 32), meta(2, dtype=torch.int32)), {})
    assert narrow.shape == (8, 32) and narrow.dtype == torch.float32


def test_torchs_own_refusals_are_passed_on():
    with pytest.raises(RuntimeError, match="same reduction dim"):
        Shapes().call(aten.mm.default, (meta(3, 4), meta(5, 6)), {})
