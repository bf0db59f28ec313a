"""Every kernel that a library may implement."""

from megaswitch.ops.fused import (
    adafactor,
    adamw,
    attention,
    cross_entropy,
    dropout,
    geglu,
    permute,
    products,
    rms_norm,
    router,
    routing,
)

KERNELS = (
    *rms_norm.KERNELS,
    *adafactor.KERNELS,
    *adamw.KERNELS,
    *attention.KERNELS,
    *dropout.KERNELS,
    *cross_entropy.KERNELS,
    *router.KERNELS,
    *routing.KERNELS,
    *permute.KERNELS,
    *products.KERNELS,
    *geglu.KERNELS,
)
