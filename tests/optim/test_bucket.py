"""Buckets: segments that partition the parameters, wide gradients and masters beside narrow weights."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.model.transformer import alone
from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.fused.backend import fused_ops
from megaswitch.ops.ops import Ops
from megaswitch.optim.bucket import Axes, Bucket, Entry, Kind, types_for
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.make import make_optimizer
from megaswitch.params.boxes import Box
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.topology.topology import Axis

CPU = torch.device("cpu")
KIND = Kind(data_axis="dp", partial=(), cut=(), replicated=(), owners=(), decay=True)


def entries_of(shapes: list[tuple[int, ...]]) -> list[Entry]:
    entries, start = [], 0
    for i, shape in enumerate(shapes):
        spec = ParamSpec(f"p{i}", shape, Init("ones"), "attn")
        entries.append(Entry(spec, Box((0,) * len(shape), shape), start))
        start += prod(shape)
    return entries


def bucket_of(shapes: list[tuple[int, ...]], rank: int, size: int, divided: bool = True) -> Bucket:
    """One rank's bucket; nothing is communicated."""
    axes = Axes(Axis("dp", rank, tuple(range(size))), divided, (), (), True)
    return Bucket(KIND, entries_of(shapes), axes, types_for(torch.float64), CPU)


shapes = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes, st.integers(1, 5))
def test_segments_partition_the_parameters(shapes, size):
    """What lies where: each element of each parameter in exactly one rank's segment, at the place of its weight."""
    used = sum(map(prod, shapes))
    seen = {f"p{i}": torch.zeros(shape, dtype=torch.int64) for i, shape in enumerate(shapes)}
    for rank in range(size):
        bucket = bucket_of(shapes, rank, size)
        assert bucket.weights.numel() - used < size, "padding is under one element a rank"
        with torch.no_grad():
            for name, parameter in bucket.params.items():
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + 1000 * int(name[1:]))
        covered = 0
        for piece in bucket.pieces:
            name = piece.entry.spec.name
            assert torch.equal(piece.view(bucket.master), bucket.params[name].detach()[piece.box.slices])
            seen[name][piece.box.slices] += 1
            assert piece.start == covered
            covered = piece.stop
        assert covered <= bucket.segment_size
    assert all((count == 1).all() for count in seen.values())


@given(shapes, st.integers(1, 4))
def test_without_zero_every_rank_holds_all(shapes, size):
    bucket = bucket_of(shapes, size - 1, size, divided=False)
    assert bucket.segment_size == sum(map(prod, shapes))
    assert sum(piece.box.size for piece in bucket.pieces) == bucket.segment_size
    assert bucket.axes.primary == (size == 1)


def test_gradients_add_up_where_they_lie():
    bucket = bucket_of([(2, 3), (4,)], 0, 1)
    for _ in range(2):
        (bucket.params["p0"].sum() + 3.0 * bucket.params["p1"].sum()).backward()
    assert bucket.grads.tolist() == [2.0] * 6 + [6.0] * 4
    assert bucket.params["p0"].grad.data_ptr() == bucket.grads.data_ptr()


def buckets_of(dtype: torch.dtype, **more) -> Buckets:
    specs = {
        "w": ParamSpec("w", (4, 3), Init("ones"), "attn"),
        "norm": ParamSpec("norm", (5,), Init("ones"), "norms", decay=False),
    }
    buckets = Buckets(specs, dict.fromkeys(specs, (0,)), alone(CPU), dtype, **more)
    buckets.initialise(0)
    return buckets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gradients_are_summed_in_float32(dtype):
    """A bf16 sum of 1 and 2^-10 is 1."""
    buckets = buckets_of(dtype)
    parameter = buckets.params["w"]
    for factor in (1.0, 2.0**-10):
        (parameter * factor).sum().backward()
        assert parameter.grad is None, "it moved into the bucket"
    bucket = next(b for b in buckets.buckets if "w" in b.params)
    assert bucket.grads.dtype == torch.float32
    assert bucket.grads[:12].tolist() == [1.0 + 2.0**-10] * 12


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_masters_move_when_bf16_weights_do_not(name, backend):
    """Steps of 1e-3 are under half of bf16's spacing at 1; they are not lost but add up."""
    buckets = buckets_of(torch.bfloat16)
    ops = Ops() if backend == "reference" else fused_ops("cpp", cpp_kernels())
    optimizer = make_optimizer(buckets, OptimConfig(name=name), ops)
    weights = []
    for step in range(1, 9):
        for bucket in buckets.buckets:
            bucket.grads.fill_(1.0)
        buckets.reduce()
        optimizer.step(1e-3, step)
        with torch.no_grad():
            buckets.publish()
        weights.append({n: p.detach().clone() for n, p in buckets.params.items()})
        for bucket in buckets.buckets:
            assert bucket.master.dtype == torch.float32
            assert torch.equal(bucket.weights[: bucket.segment_size], bucket.master.bfloat16())
    for bucket in buckets.buckets:
        moved = 1.0 - bucket.master[0].item()
        assert moved == pytest.approx(8e-3, rel=0.01)
    assert all((w == 1.0).all() for w in weights[0].values())
    assert all((w < 1.0).all() for w in weights[-1].values())


def test_wide_masters_are_the_weights_themselves():
    for bucket in buckets_of(torch.float64).buckets:
        assert bucket.master.data_ptr() == bucket.weights.data_ptr()


def test_buckets_are_limited_and_kinds_apart():
    specs = {f"p{i}": ParamSpec(f"p{i}", (4, 3), Init("ones"), "attn", decay=i != 3) for i in range(5)}
    buckets = Buckets(specs, dict.fromkeys(specs, (0,)), alone(CPU), torch.float64, bucket_elements=30)
    assert [[e.spec.name for e in b.entries] for b in buckets.buckets] == [["p0", "p1"], ["p2", "p4"], ["p3"]]
    assert set(buckets.params) == set(specs)
    small = Buckets(specs, dict.fromkeys(specs, (0,)), alone(CPU), torch.float64, bucket_elements=1)
    assert [len(b.entries) for b in small.buckets] == [1] * 5, "a larger parameter has a bucket of its own"
