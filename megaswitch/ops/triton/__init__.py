"""Kernels in Triton for the GPU."""
