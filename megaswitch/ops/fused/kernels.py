"""Every kernel that a library may implement."""

from megaswitch.ops.fused import attention, cross_entropy, dropout, rms_norm, router, routing

KERNELS = (
    *rms_norm.KERNELS,
    *attention.KERNELS,
    *dropout.KERNELS,
    *cross_entropy.KERNELS,
    *router.KERNELS,
    *routing.KERNELS,
)
