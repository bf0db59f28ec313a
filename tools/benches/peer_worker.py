"""One peer's MoE layer: forward and backward over given inputs, a round whenever a line comes in.

Run by the Python of the peers' environment, which need not have megaswitch. Prints {"norm": ...} of its first output,
then {"wall": ..., "cpu": ...} a round.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

Layer = Callable[[Tensor], Tensor]
Inputs = dict[str, Tensor]


class Expert(nn.Module):
    """relu(x wi) wo."""

    def __init__(self, wi_DF: Tensor, wo_FD: Tensor) -> None:
        super().__init__()
        self.wi = nn.Linear(*wi_DF.shape, bias=False, device="meta")
        self.wo = nn.Linear(*wo_FD.shape, bias=False, device="meta")
        self.wi.weight = nn.Parameter(wi_DF.t().contiguous())
        self.wo.weight = nn.Parameter(wo_FD.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        return self.wo(torch.relu(self.wi(x)))


def deepspeed_layer(inputs: Inputs) -> tuple[nn.Module, Layer]:
    """DeepSpeed's MoE with the experts of this rank; top-1, capacity factor 1, no random order of tokens."""
    import deepspeed
    from deepspeed.moe.layer import MoE

    for operator in deepspeed.ops.__compatible_ops__:
        deepspeed.ops.__compatible_ops__[operator] = False  # none is used here, and one would be compiled now
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    world, rank = dist.get_world_size(), dist.get_rank()
    wi, wo, router = inputs["wi"], inputs["wo"], inputs["router"]
    layer = MoE(
        wi.shape[1], Expert(wi[0], wo[0]), num_experts=wi.shape[0], ep_size=world, k=1,
        capacity_factor=1.0, min_capacity=0, use_rts=False,
    )
    layer.set_deepspeed_parallelism()
    gate = next(module for module in layer.modules() if isinstance(module, nn.Linear))
    own = len(wi) // world
    experts = [module for module in layer.modules() if isinstance(module, Expert)]
    with torch.no_grad():
        gate.weight.copy_(router.t())
        for i, expert in enumerate(experts):
            expert.wi.weight.copy_(wi[rank * own + i].t())
            expert.wo.weight.copy_(wo[rank * own + i].t())
    assert len(experts) == own
    return layer, lambda x: layer(x)[0]


def tutel_layer(inputs: Inputs) -> tuple[nn.Module, Layer]:
    """Tutel's MoE layer with the experts of this rank; top-1, capacity factor 1."""
    from tutel import moe, net

    net.create_groups_from_world(group_count=1)
    world, rank = dist.get_world_size(), dist.get_rank()
    wi, wo, router = inputs["wi"], inputs["wo"], inputs["router"]
    own = len(wi) // world
    layer = moe.moe_layer(
        gate_type={"type": "top", "k": 1, "fp32_gate": True, "capacity_factor": 1.0},
        experts={
            "type": "ffn", "num_experts_per_device": own, "hidden_size_per_expert": wi.shape[2],
            "activation_fn": torch.relu, "has_fc1_bias": False, "has_fc2_bias": False,
        },
        model_dim=wi.shape[1],
    ).to(wi.dtype)
    part = slice(rank * own, (rank + 1) * own)
    with torch.no_grad():
        layer.gates[0].wg.weight.copy_(router.t())
        layer.experts.batched_fc1_w.copy_(wi[part].transpose(1, 2))
        layer.experts.batched_fc2_w.copy_(wo[part])
    return layer, layer


def main() -> None:
    """Rounds until the input ends."""
    name, case = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{case}.{name}.meeting", rank=rank, world_size=world)
    inputs = load_file(case)
    x_BLD, grad_BLD = (inputs[part].chunk(world)[rank].contiguous() for part in ("x", "grad"))
    layer, forward = {"deepspeed": deepspeed_layer, "tutel": tutel_layer}[name](inputs)

    def once() -> Tensor:
        layer.zero_grad(set_to_none=True)
        x = x_BLD.detach().requires_grad_()
        out = forward(x)
        out.backward(grad_BLD.to(out.dtype))
        return out.detach()

    print(json.dumps({"norm": once().double().norm().item()}), flush=True)
    for _ in sys.stdin:
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        once()
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
