"""Kernels in C++ for the CPU, vectorised and spread over torch's threads; `setup.py` builds them."""
