"""Which processors multiply bfloat16 by themselves."""

import pytest
import torch

from megaswitch.utils.precision import multiplies

CPU = torch.device("cpu")


@pytest.mark.parametrize(("found", "expected"), [({"amx_bf16": True}, True), ({"avx2": True}, False), ({}, False)])
def test_bfloat16_is_asked_of_the_processor(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert multiplies(torch.bfloat16, CPU) is expected
    assert multiplies(torch.float32, CPU)
    assert multiplies(torch.bfloat16, torch.device("cuda"))


def test_this_processor_answers():
    assert isinstance(multiplies(torch.bfloat16, CPU), bool)
