"""Every kernel that a library may implement."""

from megaswitch.ops.fused import rms_norm

KERNELS = (*rms_norm.KERNELS,)
