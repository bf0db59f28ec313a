"""Sharded checkpoints: format, saving, loading, choice of the newest."""
