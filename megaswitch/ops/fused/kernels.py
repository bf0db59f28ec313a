"""Every kernel that a library may implement."""

from megaswitch.ops.fused import dropout, rms_norm

KERNELS = (*rms_norm.KERNELS, *dropout.KERNELS)
