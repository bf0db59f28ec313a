"""NVIDIA apex's norms and AdamW, where somebody has built it; never a requirement."""
