"""What torch.compile makes of the definitions, without its code generator: the same numbers, in few graphs that serve
for any number of rows; and what inductor is refused for."""

import os
import stat
from dataclasses import fields

import pytest
import torch
from torch._dynamo.utils import counters

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.compiled import compiled_ops
from megaswitch.ops.compiler import CACHE, refuse_without_compiler
from megaswitch.ops.ops import Joint, Ops
from megaswitch.ops.reference.dropout import RowDrop
from megaswitch.ops.reference.random import start
from megaswitch.ops.registry import choose_ops, in_words
from megaswitch.utils.errors import CannotWriteError, UserError

CPU = torch.device("cpu")
WIDTH, RATE = 6, 0.3


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def drop_of(rows, ops):
    return RowDrop(ops.states(start(7, CPU), (torch.arange(rows),)), RATE, 2)


def on_rows(ops, rows):
    """What a block does with so many tokens, and its gradients."""
    x, y, w = leaf(rows, WIDTH), leaf(rows, WIDTH, seed=1), leaf(WIDTH)
    drop = drop_of(rows, ops)
    total, normed = ops.residual_norm(x, y, w, drop)
    outs = [total, normed, ops.residual(x, y, drop), ops.dropped(x, drop)]
    outs += [ops.rms_norm(x, w), *ops.add_rms_norm(x, y, w)]
    grads = torch.autograd.grad([out.square().sum() for out in outs], [x, y, w])
    return [*outs, *grads, ops.features_uniform(drop.states_N, 2, WIDTH)]


@pytest.fixture(scope="module")
def traced():
    return compiled_ops(Ops(), "aot_eager", CPU)


def test_any_number_of_rows_is_one_graph_and_gives_the_definitions_numbers(traced):
    graphs = []
    for rows in (12, 5, 1, 0, 6, 2, 7):  # as many rows as columns among them, and numbers that torch makes constants of
        for made, definition in zip(on_rows(traced, rows), on_rows(Ops(), rows), strict=True):
            torch.testing.assert_close(made, definition, rtol=1e-12, atol=1e-12)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == graphs[:1] * len(graphs)
    assert not counters["graph_break"]


def test_rows_of_sequences_are_rows(traced):
    x, w = leaf(2, 4, WIDTH), leaf(WIDTH)
    total, normed = traced.residual_norm(x, 2 * x, w, drop_of(8, traced))
    assert total.shape == normed.shape == x.shape
    expected = Ops().residual_norm(x, 2 * x, w, drop_of(8, Ops()))
    torch.testing.assert_close((total, normed), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [Bias(causal=True), Bias(leaf(2, 8))], ids=["causal", "by distance"])
def test_attention(traced, bias):
    def both(ops):
        q, k, v = leaf(3, 4, 2, 5), leaf(3, 5, 2, 5), leaf(3, 5, 2, 5, seed=1)
        states = ops.states(start(3, CPU), (torch.arange(3), torch.arange(2), torch.arange(4)))
        out = ops.attention(q, k, v, bias, Drop(RATE, states))
        leaves = [q, k, v] if bias.by_distance_HR is None else [q, k, v, bias.by_distance_HR]
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    torch.testing.assert_close(both(traced), both(Ops()), rtol=1e-12, atol=1e-12)


def test_kernels_stay_and_the_log_tells_both():
    ops = compiled_ops(choose_ops("cpp", CPU), "aot_eager", CPU)
    assert ops.compiled == ("states",) and ops.joint is None
    assert ops.replaced() == choose_ops("cpp", CPU).replaced()
    assert in_words(ops).endswith("; to be compiled by torch: states")
    assert "attention" in compiled_ops(Ops(), "aot_eager", CPU).compiled
    assert in_words(compiled_ops(Ops(), "aot_eager", CPU)).startswith("operations by plain torch; to be")


def test_every_joint_operation_is_a_method():
    assert all(callable(getattr(Ops, field.name)) for field in fields(Joint))


@pytest.mark.skipif("CXX" in os.environ, reason="another compiler is named")
def test_without_a_compiler_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"g\+\+ does not answer: install g\+\+.*train\.compile=none"):
        compiled_ops(Ops(), "inductor", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_wants_triton(monkeypatch):
    with pytest.raises(UserError, match="wants Triton on a GPU"):
        refuse_without_compiler(torch.device("cuda"))


def test_code_is_kept_where_nobody_else_writes(tmp_path, monkeypatch):
    own = tmp_path / "deep" / "own"
    monkeypatch.setenv(CACHE, str(own))
    refuse_without_compiler(CPU)
    assert stat.S_IMODE(own.stat().st_mode) & 0o077 == 0
    own.chmod(0o777)
    with pytest.raises(UserError, match=r"others can write to .*own, from which compiled code would be run"):
        refuse_without_compiler(CPU)


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "below"))
    with pytest.raises(CannotWriteError, match=f"cannot keep compiled code: .*{CACHE}"):
        refuse_without_compiler(CPU)


def test_it_compiles_in_this_process_unless_told_otherwise(monkeypatch, tmp_path):
    import torch._inductor.config as inductor

    monkeypatch.setenv(CACHE, str(tmp_path))
    with inductor.patch(compile_threads=3):
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
        refuse_without_compiler(CPU)
        assert inductor.compile_threads == 3
        monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
        refuse_without_compiler(CPU)
        assert inductor.compile_threads == 1
    assert os.environ[CACHE] == str(tmp_path)
