"""Collectives with gradients and point-to-point transfers; nothing here knows of layers."""
