"""The distillation loss of paper 4.2 and its gradient against the published vectors."""

import numpy as np
import pytest
import torch

from megaswitch.model.distill import distillation_loss
from megaswitch.utils.errors import UserError


def loss_of(vector, student, teacher, dtype=torch.float64, **more):
    targets, weights = (torch.from_numpy(vector[name]).flatten() for name in ("targets", "weights"))
    settings = {"soft_share": "frac_soft", "temperature": "T", "z_loss": "z"}
    settings = {name: float(vector[key]) for name, key in settings.items()} | more
    flat = (logits.to(dtype).flatten(0, 1) for logits in (student, teacher))
    return distillation_loss(*flat, targets, weights, **settings)


@pytest.mark.parametrize("temperature", [1, 2])
def test_loss_and_gradient(golden, temperature):
    vector = golden(f"distill_T{temperature}")
    student, teacher = (torch.from_numpy(vector[name]).requires_grad_() for name in ("student", "teacher"))
    assert float(vector["T"]) == temperature
    found = loss_of(vector, student, teacher)
    for name, scalar in found._asdict().items():
        np.testing.assert_allclose(scalar.item(), vector[name], rtol=1e-14, err_msg=name)
    found.loss.backward()
    np.testing.assert_allclose(student.grad, vector["grad"], atol=1e-16)
    assert teacher.grad is None
    assert (vector["weights"] == 0).any() and not student.grad[torch.from_numpy(vector["weights"] == 0)].any()


def test_parts_of_a_batch_add_up(golden):
    """With the whole batch's number of targets as denominator."""
    vector = golden("distill_T2")
    parts = []
    for row in range(3):
        part = {name: vector[name][row : row + 1] for name in ("targets", "weights")} | {
            name: vector[name] for name in ("frac_soft", "T", "z")
        }
        logits = (torch.from_numpy(vector[name][row : row + 1]) for name in ("student", "teacher"))
        parts.append(loss_of(part, *logits, denominator=torch.tensor(vector["weights"].sum())).loss.item())
    assert sum(parts) == pytest.approx(float(vector["loss"]), rel=1e-14)


def test_narrow_logits_are_widened(golden):
    vector = golden("distill_T1")
    student, teacher = (torch.from_numpy(vector[name]) for name in ("student", "teacher"))
    found = loss_of(vector, student, teacher, torch.bfloat16)
    rounded = loss_of(vector, student.bfloat16().double(), teacher.bfloat16().double())
    assert found.loss.item() == pytest.approx(rounded.loss.item(), rel=1e-6)


@pytest.mark.parametrize("wrong", [{"soft_share": 1.5}, {"soft_share": -0.1}, {"temperature": 0.0}])
def test_shares_and_temperatures_that_mean_nothing(golden, wrong):
    vector = golden("distill_T1")
    with pytest.raises(UserError, match="soft_share"):
        loss_of(vector, torch.from_numpy(vector["student"]), torch.from_numpy(vector["teacher"]), **wrong)
