"""Gradient buckets, optimizers over their segments, clipping and learning rates."""
