"""Which operations a run gets, and what it is told when it cannot have them."""

import logging
import sys

import pytest
import torch

from megaswitch.ops import registry
from megaswitch.ops.apex.load import apex_kernels
from megaswitch.ops.ops import Ops
from megaswitch.ops.registry import availability, choose_ops, in_words
from megaswitch.ops.unavailable import Unavailable
from megaswitch.utils.errors import UserError

CPU, META = torch.device("cpu"), torch.device("meta")


def missing():
    raise Unavailable("the C++ kernels are not built: build them")


def test_the_reference_is_what_no_backend_replaces():
    assert choose_ops("reference", CPU) == Ops()
    assert Ops().replaced() == []
    assert in_words(Ops()) == "operations by plain torch"


def test_a_cpu_gets_the_compiled_kernels():
    ops = choose_ops("auto", CPU)
    assert ops.name == "cpp"
    assert {"rms_norm", "add_rms_norm"} <= set(ops.replaced())
    assert in_words(ops).startswith("operations by cpp: ")


def test_without_them_torch_does_the_work_and_the_run_is_told(monkeypatch, caplog):
    monkeypatch.setitem(registry.SOURCES, "cpp", registry.Source("cpu", missing, registry.SOURCES["cpp"].ops))
    with caplog.at_level(logging.WARNING):
        assert choose_ops("auto", CPU) == Ops()
    assert "plain torch does the operations: the C++ kernels are not built" in caplog.text
    assert availability()["cpp"] == "the C++ kernels are not built: build them"


def test_what_was_asked_for_by_name_is_had_or_refused(monkeypatch):
    monkeypatch.setitem(registry.SOURCES, "cpp", registry.Source("cpu", missing, registry.SOURCES["cpp"].ops))
    with pytest.raises(UserError, match=r"ops.backend=cpp: the C\+\+ kernels are not built"):
        choose_ops("cpp", CPU)


def test_kernels_for_another_device_are_refused():
    with pytest.raises(UserError, match="its kernels are for cpu devices, and this run is on cuda"):
        choose_ops("cpp", torch.device("cuda"))


def test_shapes_alone_answer_on_the_meta_device():
    ops = choose_ops("cpp", META)
    x, w = torch.empty(2, 3, 8, device=META, requires_grad=True), torch.empty(8, device=META, requires_grad=True)
    total, normed = ops.add_rms_norm(x, x, w)
    (total.sum() + normed.sum()).backward()
    assert x.grad.shape == x.shape and w.grad.shape == w.shape


def test_an_apex_that_is_not_nvidias_is_told_apart(monkeypatch, tmp_path):
    """PyPI's apex is another project."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Unavailable, match="this apex is not NVIDIA's"):
        apex_kernels.__wrapped__()
    sys.modules.pop("apex")


def test_without_apex_it_is_said_how_to_get_it():
    assert "NVIDIA apex is not installed: build it" in availability()["apex"]


def test_shapes_of_apex_are_those_of_triton():
    ops = choose_ops("apex", META)
    assert ops.name == "apex"
    assert {"rms_norm", "adafactor", "dropout"} <= set(ops.replaced())
