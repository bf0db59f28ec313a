"""The benchmarks of `tools/bench_data.py`, one a module."""
