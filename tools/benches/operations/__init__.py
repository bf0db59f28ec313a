"""What `bench.py ops` measures: a module for each operation, with its inputs and what libraries offer in its stead."""
