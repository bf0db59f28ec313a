"""The operations that libraries of kernels do faster than torch: C++ on a CPU, Triton on a GPU."""

from functools import partial
from typing import Any

from megaswitch.ops.fused.adafactor import passes
from megaswitch.ops.fused.adamw import adamw_
from megaswitch.ops.fused.attention import attention
from megaswitch.ops.fused.cross_entropy import cross_entropy_gradient, cross_entropy_statistics
from megaswitch.ops.fused.dropout import dropout, features_uniform, jitter
from megaswitch.ops.fused.permute import permute, unpermute
from megaswitch.ops.fused.products import cpu_products, gpu_products
from megaswitch.ops.fused.rms_norm import add_rms_norm, rms_norm
from megaswitch.ops.fused.router import route, route_gradient, tokens_gradient
from megaswitch.ops.fused.routing import count_choices, lane_order, queue
from megaswitch.ops.ops import Ops


def fused_ops(name: str, kernels: Any) -> Ops:
    """Operations of the backend of that name by its kernels; what is not listed stays torch's."""
    return Ops(
        name=name,
        products=cpu_products(kernels) if name == "cpp" else gpu_products(kernels),
        rms_norm=partial(rms_norm, kernels),
        add_rms_norm=partial(add_rms_norm, kernels),
        attention=partial(attention, kernels),
        dropout=partial(dropout, kernels),
        jitter=partial(jitter, kernels),
        features_uniform=partial(features_uniform, kernels),
        cross_entropy_statistics=partial(cross_entropy_statistics, kernels),
        cross_entropy_gradient=partial(cross_entropy_gradient, kernels),
        route=partial(route, kernels),
        route_gradient=partial(route_gradient, kernels),
        tokens_gradient=partial(tokens_gradient, kernels),
        queue=partial(queue, kernels),
        count_choices=partial(count_choices, kernels),
        lane_order=partial(lane_order, kernels),
        permute=partial(permute, kernels),
        unpermute=partial(unpermute, kernels),
        adafactor=passes(kernels),
        adamw_=partial(adamw_, kernels),
    )
