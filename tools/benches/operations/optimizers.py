"""One update of all parameters, nanoseconds a parameter, beside torch's optimizers. Where weights are bfloat16, AdamW
rounds the masters to them too, ours and torch's; Adafactor does not."""

import argparse

import torch

from benches.floors import optimizer_bytes
from benches.models import Ours, run_config, switch_model
from benches.operations.case import Case, Make, Size, Work
from megaswitch.ops.ops import Ops


def cases(size: Size) -> list[Case]:
    """A Switch Transformer of some 60 million parameters with float32 gradients, moments and masters."""
    return [_case("adamw", size), _case("adafactor", size)]


def _options(name: str, size: Size) -> argparse.Namespace:
    return argparse.Namespace(
        quick=size.quick, d_model=512, layers=4, batch=8, micro_batch=None, optimizer=name, dropout=0.0,
        dtype=str(size.dtype).removeprefix("torch."), key=[],
    )


def _case(name: str, size: Size) -> Case:
    options = _options(name, size)
    config = run_config(switch_model(options, 4, fixed_capacity=None), options)
    parameters = sum(p.numel() for p in Ours(config).system.buckets.params.values())
    shapes = [p.shape for p in Ours(config).system.buckets.params.values()]

    def ours(ops: Ops) -> Work:
        backend = options.__class__(**{**vars(options), "key": [f"ops.backend={ops.name}"]})
        optimizer = Ours(run_config(config.model, backend)).system.optimizer
        steps = iter(range(1, 1 << 30))
        return lambda: optimizer.step(1e-4, next(steps))

    def library(kind: type[torch.optim.Optimizer], rounds: bool = False, **more: bool) -> Make:
        def make() -> Work:
            tensors = [torch.randn(shape) for shape in shapes]
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape)
            rounded = [tensor.to(size.dtype) for tensor in tensors]
            optimizer = kind(tensors, lr=1e-4, **more)  # type: ignore[call-arg]

            def step() -> None:
                optimizer.step()
                torch._foreach_copy_(rounded, tensors)

            return step if rounds else optimizer.step

        return make

    narrow = name == "adamw" and size.dtype != torch.float32
    adamw = {"AdamW(fused=True)" + " and a copy" * narrow: library(torch.optim.AdamW, narrow, fused=True)}
    own = adamw if name == "adamw" else {"Adafactor": library(torch.optim.Adafactor)}
    return Case(
        f"{name}, {parameters / 1e6:.1f} M parameters",
        ours,
        ("adafactor",) if name == "adafactor" else ("adamw_",),
        own,
        {} if name == "adamw" else adamw,
        updated=parameters * optimizer_bytes(name),
        units=parameters * 1e-9,
        unit="ns/parameter",
    )
