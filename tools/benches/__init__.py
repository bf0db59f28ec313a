"""The benchmarks of `tools/bench.py`: one module a command, and what they share."""
