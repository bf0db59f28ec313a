"""Our Switch layer and our dense network as the training system holds them: weights, `main_grad` and context.

B sequences, L tokens of a sequence, D d_model, F d_ff, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benches.models import ALONE, Batch, make_batch
from megaswitch.layers.context import Context
from megaswitch.layers.feed_forward import FeedForward
from megaswitch.layers.moe.layer import SwitchLayer
from megaswitch.model.config import ModelConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.start import Place
from megaswitch.train.batches import make_work
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.system import System, build
from megaswitch.utils.malloc import keep_freed_memory

Case = Mapping[str, Tensor]


def _system(case: Case, place: Place, dtype: str) -> System:
    """A model whose encoder has one Switch layer of the case's shape."""
    keep_freed_memory()  # as training does
    (B, L, D), (E, _, F) = case["x"].shape, case["wi"].shape
    model = ModelConfig(
        vocab_size=64, d_model=D, d_ff=F, d_kv=16, num_heads=1, num_encoder_layers=2, num_decoder_layers=1,
        num_experts=E, num_sparse_encoder_layers=1, encoder_length=L, decoder_length=8, capacity_factor=1.0,
        min_capacity=1, aux_loss_coef=0.0,
    )
    train = TrainConfig(global_batch=B, micro_batch=B // place.world, dtype=dtype)  # type: ignore[arg-type]
    return build(RunConfig(model=model, train=train, layout=LayoutConfig(ep=place.world)), place)


def _context(system: System) -> Context:
    first = system.topology.dp.rank * system.sequences
    batches: Sequence[Batch] = [make_batch(system.config.model, first, system.sequences)]
    return make_work(system, batches, 0, training=True).contexts[0]


def _layer(system: System, kind: type[nn.Module]) -> Any:
    return next(m for chunk in system.executor.chunks for m in chunk.modules() if isinstance(m, kind))


@torch.no_grad()
def _fill(target: Tensor, values: Tensor) -> None:
    assert target.shape == values.shape
    target.copy_(values)


def switch_round(case: Case, place: Place, dtype: str) -> Callable[[], Tensor]:
    """Forward and backward of the Switch layer over this rank's sequences; returns its output."""
    system = _system(case, place, dtype)
    layer, ctx, ep = _layer(system, SwitchLayer), _context(system), system.topology.ep
    _fill(layer.router.weight_DE, case["router"])
    for name, weight in (("wi", layer.experts.wi_XDF), ("wo", layer.experts.outputs[0])):
        _fill(weight, case[name].chunk(ep.size)[ep.rank])
    x_BLD, grad_BLD = (case[name].chunk(place.world)[place.rank] for name in ("x", "grad"))
    routed_BL = torch.ones(x_BLD.shape[:2], dtype=torch.bool)
    return _round(layer, x_BLD, grad_BLD, lambda x: layer(x, routed_BL, ctx)[0], ctx)


def dense_round(case: Case, dtype: str) -> Callable[[], Tensor]:
    """The same of a dense network of an expert's size."""
    system = _system(case, ALONE, dtype)
    layer, ctx = _layer(system, FeedForward), _context(system)
    _fill(layer.wi.weight_IO, case["wi"][0])
    _fill(layer.wo.weight_IO, case["wo"][0])
    return _round(layer, case["x"], case["grad"], lambda x: layer(x, ctx), ctx)


def _round(
    layer: nn.Module, x_BLD: Tensor, grad_BLD: Tensor, forward: Callable[[Tensor], Tensor], ctx: Context
) -> Callable[[], Tensor]:
    def once() -> Tensor:
        for parameter in layer.parameters():
            parameter.main_grad.zero_()  # type: ignore[attr-defined]
        x = x_BLD.detach().requires_grad_()
        out = forward(x)
        torch.autograd.backward([out], [grad_BLD])
        ctx.work.meanwhile()
        return out.detach()

    return once
