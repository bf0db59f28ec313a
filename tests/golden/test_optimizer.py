"""Adafactor by T5X's rule, and learning rates, against the published vectors."""

import numpy as np
import pytest
import torch

from megaswitch.optim.adafactor import Adafactor, second_moment_decay
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.schedule import learning_rate
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid
from megaswitch.topology.topology import make_topology

TENSORS = ("expert", "expert_big", "mat", "mat_T", "scalar", "small", "square", "thr127", "thr128", "vec")


def largest_share(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


@pytest.mark.parametrize("name", TENSORS)
def test_adafactor(golden, name):
    vector = golden(f"adafactor_{name}")
    shape = vector["p0"].shape
    spec = ParamSpec("p", shape, Init("ones"), "attn", expert=len(shape) == 3)
    topology = make_topology(make_grid(LayoutConfig(), 1), 0, torch.device("cpu"))
    buckets = Buckets({"p": spec}, {"p": (0,)}, topology, torch.float64)
    (bucket,) = buckets.buckets
    buckets.params["p"].data.copy_(torch.from_numpy(vector["p0"]))
    optimizer = Adafactor(buckets, OptimConfig(min_dim_to_factor=int(vector["min_dim"])))
    for step, grad in enumerate(vector["grads"], start=1):
        bucket.grads.zero_()
        bucket.grads[: grad.size].copy_(torch.from_numpy(grad).flatten())
        bucket.reduce()
        optimizer.step(float(vector["lr"]), step)
        if step == 1 and "t5x_scaled_p_step1" in vector:
            assert largest_share(vector["t5x_scaled_p_step1"], buckets.params["p"].detach().numpy()) < 1e-14
    found = buckets.params["p"].detach().numpy()
    assert largest_share(vector["t5x_scaled_p"], found) < tolerance(vector["t5x_scaled_p"])
    check_moments(vector, {t.name: t.view.numpy() for t in optimizer.state()})


def tolerance(values: np.ndarray) -> float:
    """Some vectors are stored in float32 and are then known to its rounding only."""
    return 1e-13 if values.dtype == np.float64 else 1e-7


def check_moments(vector, state) -> None:
    """Mean squares by row and by column; which of the two a vector calls vr depends on the longer side."""
    if "t5x_v" in vector:
        assert largest_share(vector["t5x_v"], state["second/p"]) < tolerance(vector["t5x_v"])
        return
    rows_first = vector["t5x_vr"].shape == state["row/p"].shape and (
        vector["t5x_factored_axes"][0] < vector["t5x_factored_axes"][1]
    )
    names = ("row/p", "col/p") if rows_first else ("col/p", "row/p")
    for key, name in zip(("t5x_vr", "t5x_vc"), names, strict=True):
        assert largest_share(vector[key], state[name]) < 1e-13, key


def test_learning_rate_and_decay(golden):
    vector = golden("lr")
    config = OptimConfig()
    for step, lr, beta2 in zip(vector["step"], vector["lr"], vector["beta2"], strict=True):
        assert learning_rate(config, int(step), 10**6) == pytest.approx(lr, rel=1e-14)
        assert second_moment_decay(int(step) + 1, config.decay_rate) == pytest.approx(beta2, rel=1e-14)
