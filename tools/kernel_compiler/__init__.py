"""Parts of `tools/compile_kernels.py`."""
