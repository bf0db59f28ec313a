"""AdamW over flat segments against torch's own, with and without decay."""

import pytest
import torch

from megaswitch.model.transformer import alone
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference import adamw
from megaswitch.optim.adamw import AdamW
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.config import OptimConfig
from megaswitch.params.spec import Init, ParamSpec

SPECS = {
    "w": ParamSpec("w", (6, 5), Init("normal", 1.0), "attn"),
    "v": ParamSpec("v", (3, 4), Init("normal", 1.0), "attn"),
    "norm": ParamSpec("norm", (5,), Init("normal", 1.0), "norms", decay=False),
}


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.95)])
def test_equals_torchs(decay, betas):
    buckets = Buckets(SPECS, dict.fromkeys(SPECS, (0,)), alone(torch.device("cpu")), torch.float64)
    buckets.initialise(1)
    config = OptimConfig(name="adamw", weight_decay=decay, beta1=betas[0], beta2=betas[1], eps=1e-6)
    ours = AdamW(buckets, config, Ops())
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in buckets.params.items()}
    decayed = {"params": [theirs["w"], theirs["v"]], "weight_decay": decay}
    groups = [decayed, {"params": [theirs["norm"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 7):
        lr = 0.01 * step
        buckets.zero_grad()
        for name, parameter in theirs.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            buckets.params[name].grad += parameter.grad
        for group in reference.param_groups:
            group["lr"] = lr
        buckets.reduce()
        ours.step(lr, step)
        reference.step()
    for name, parameter in theirs.items():
        difference = (parameter - buckets.params[name]).detach().abs().max()
        assert difference < 1e-13 * parameter.detach().abs().max(), name
    state = {t.name: t.view for t in ours.state()}
    for name, parameter in theirs.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = reference.state[parameter][moment]
            assert (state[f"{moment}/{name}"] - expected).abs().max() < 1e-13 * expected.abs().max()


def test_narrow_moments_run_by_run(monkeypatch):
    """What is widened together changes no bit, and moments stay narrow."""
    after = []
    for run in (16, 1 << 20):  # a vector of the processor: what is left over is rounded otherwise
        monkeypatch.setattr(adamw, "_RUN", run)
        buckets = Buckets(SPECS, dict.fromkeys(SPECS, (0,)), alone(torch.device("cpu")), torch.float32)
        buckets.initialise(1)
        ours = AdamW(buckets, OptimConfig(name="adamw", beta2=0.99, moment_dtype="bfloat16"), Ops())
        for step in (1, 2, 3):
            for bucket in buckets.buckets:
                generator = torch.Generator().manual_seed(step)
                bucket.grads.copy_(torch.randn(len(bucket.grads), generator=generator))
            ours.step(0.01, step)
        assert {t.view.dtype for t in ours.state()} == {torch.bfloat16}
        after.append([bucket.master.clone() for bucket in buckets.buckets])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))
