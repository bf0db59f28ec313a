"""Adafactor by its two published rules (and a third library's), and learning rates, against the published vectors."""

import numpy as np
import pytest
import torch

from megaswitch.ops.registry import choose_ops
from megaswitch.optim.adafactor import Adafactor, second_moment_decay
from megaswitch.optim.adafactor_statistics import factored_dims
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


def adafactor(vector, rule: str, scaled: bool, backend: str) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The parameter after each step, and the optimizer's state after the last."""
    shape = vector["p0"].shape
    spec = ParamSpec("p", shape, Init("ones"), "attn", expert=len(shape) == 3)
    topology = make_topology(make_grid(LayoutConfig(), 1), 0, torch.device("cpu"))
    buckets = Buckets({"p": spec}, {"p": (0,)}, topology, torch.float64)
    (bucket,) = buckets.buckets
    buckets.params["p"].data.copy_(torch.from_numpy(vector["p0"]))
    min_dim = int(vector["min_dim"])
    config = OptimConfig(adafactor_rule=rule, min_dim_to_factor=min_dim, multiply_by_parameter_scale=scaled)
    optimizer, after = Adafactor(buckets, config, choose_ops(backend, torch.device("cpu"))), []
    for step, grad in enumerate(vector["grads"], start=1):
        bucket.grads.zero_()
        bucket.grads[: grad.size].copy_(torch.from_numpy(grad).flatten())
        bucket.reduce()
        optimizer.step(float(vector["lr"]), step)
        after.append(buckets.params["p"].detach().numpy().copy())
    return after, {t.name: t.view.numpy() for t in optimizer.state()}


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("rule", ["t5x", "mtf"])
@pytest.mark.parametrize("name", TENSORS)
def test_adafactor(golden, name, rule, scaled, backend):
    vector, key = golden(f"adafactor_{name}"), f"{rule}_{'scaled' if scaled else 'unscaled'}_p"
    after, state = adafactor(vector, rule, scaled, backend)
    assert largest_share(vector[key], after[-1]) < tolerance(vector[key])
    if f"{key}_step1" in vector:
        assert largest_share(vector[f"{key}_step1"], after[0]) < 1e-14
    check_moments(vector, rule, state)


def tolerance(values: np.ndarray) -> float:
    """Some vectors are stored in float32 and are then known to its rounding only."""
    return 1e-13 if values.dtype == np.float64 else 1e-7


def check_moments(vector, rule: str, state) -> None:
    """Unfactored moments, or means by row (over the later dimension) and by column. `factored_axes` is the dimension
    that vr keeps, then the one it is a mean over."""
    axes = vector[f"{rule}_factored_axes"]
    if f"{rule}_v" in vector:
        assert list(axes) == [-1] and set(state) == {"second/p"}
        assert largest_share(vector[f"{rule}_v"], state["second/p"]) < tolerance(vector[f"{rule}_v"])
        return
    names = ("row/p", "col/p") if axes[0] < axes[1] else ("col/p", "row/p")
    for key, name in zip(("vr", "vc"), names, strict=True):
        assert vector[f"{rule}_{key}"].shape == state[name].shape
        assert largest_share(vector[f"{rule}_{key}"], state[name]) < 1e-13, key


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("rule", ["t5x", "mtf"])
def test_factored_dimensions(golden, name, rule):
    vector = golden(f"adafactor_{name}")
    spec = ParamSpec("p", vector["p0"].shape, Init("ones"), "attn", expert=vector["p0"].ndim == 3)
    found = factored_dims(spec, rule, int(vector["min_dim"]))
    assert (list(found) if found else [-1]) == sorted(vector[f"{rule}_factored_axes"])


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((8, 8, 8), (0, 1)), ((6, 8, 8), (1, 2)), ((8, 6, 8), (0, 2)), ((9, 8, 8), (0, 1)), ((5, 5, 9), (0, 2))],
)
def test_the_earlier_of_equal_dimensions_is_factored(shape, dims):
    """mesh-tensorflow's sort is stable."""
    assert factored_dims(ParamSpec("p", shape, Init("ones"), "experts", expert=True), "mtf", 5) == dims
    assert factored_dims(ParamSpec("p", shape, Init("ones"), "experts", expert=True), "mtf", 9) is None
    assert factored_dims(ParamSpec("p", shape, Init("ones"), "experts", expert=True), "t5x", 9) == (1, 2)


def hugging_face(p0: np.ndarray, grads: np.ndarray, lr: float, scaled: bool) -> tuple[list[np.ndarray], list]:
    """Another library's rule, which is offered to nobody: the last two dimensions of every tensor are factored,
    however short; root mean squares are the whole tensor's. Gives the parameter after each step and the moments."""
    p, moments = p0.astype(np.float64), [0.0, 0.0] if p0.ndim >= 2 else [0.0]
    after = []
    for step, grad in enumerate(grads.astype(np.float64), start=1):
        decay, squares = 1.0 - step**-0.8, grad**2 + 1e-30
        means = [squares.mean(-1), squares.mean(-2)] if p0.ndim >= 2 else [squares]
        moments = [decay * old + (1.0 - decay) * new for old, new in zip(moments, means, strict=True)]
        if p0.ndim >= 2:
            rows = moments[0] / moments[0].mean(-1, keepdims=True)
            update = grad / np.sqrt(rows)[..., None] / np.sqrt(moments[1])[..., None, :]
        else:
            update = grad / np.sqrt(moments[0])
        update /= max(1.0, np.sqrt((update**2).mean()))
        p = p - lr * (max(np.sqrt((p**2).mean()), 1e-3) if scaled else 1.0) * update
        after.append(p)
    return after, moments


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("name", TENSORS)
def test_hugging_faces_rule_is_another(golden, name, scaled):
    vector, key = golden(f"adafactor_{name}"), f"hf_{'scaled' if scaled else 'unscaled'}_p"
    after, moments = hugging_face(vector["p0"], vector["grads"], float(vector["lr"]), scaled)
    assert largest_share(vector[key], after[-1]) < tolerance(vector[key])
    if f"{key}_step1" in vector:
        assert largest_share(vector[f"{key}_step1"], after[0]) < 1e-13
    for kind, moment in zip(("vr", "vc") if len(moments) == 2 else ("v",), moments, strict=True):
        assert largest_share(vector[f"hf_{kind}"], moment) < tolerance(vector[f"hf_{kind}"])
    last_two = [vector["p0"].ndim - 2, vector["p0"].ndim - 1] if vector["p0"].ndim >= 2 else [-1]
    assert list(vector["hf_factored_axes"]) == last_two


def test_learning_rate_and_decay(golden):
    vector = golden("lr")
    config = OptimConfig()
    for step, lr, beta2 in zip(vector["step"], vector["lr"], vector["beta2"], strict=True):
        assert learning_rate(config, int(step), 10**6) == pytest.approx(lr, rel=1e-14)
        assert second_moment_decay(int(step) + 1, config.decay_rate) == pytest.approx(beta2, rel=1e-14)
