"""The models of the paper, as released (spec: flaxformer's configurations), and a tiny one for a laptop.

A preset is a dictionary of configuration sections; a file and the command line override it field by field.
"""

from typing import Any

Preset = dict[str, dict[str, Any]]


def _t5(d_model: int, d_ff: int, heads: int, layers: int, **more: Any) -> Preset:
    model = {
        "d_model": d_model,
        "d_ff": d_ff,
        "num_heads": heads,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        **more,
    }
    return {"model": model, "train": {"global_batch": 2048, "micro_batch": 1}}


def _switch(dense: Preset, experts: int, sparse: int, groups: tuple[int, int], **more: Any) -> Preset:
    model = {
        **dense["model"],
        "num_experts": experts,
        "num_sparse_encoder_layers": sparse,
        "num_sparse_decoder_layers": sparse,
        "group_sequences": groups[0],
        "decoder_group_sequences": None if groups[0] == groups[1] else groups[1],
        **more,
    }
    return {"model": model, "train": {"global_batch": 2048, "micro_batch": max(groups)}}


def _tiny() -> Preset:
    dense = _t5(64, 128, 4, 4, d_kv=16, vocab_size=4096, encoder_length=64, decoder_length=14)
    tiny = _switch(dense, 8, 2, (1, 1), min_capacity=2)
    return {**tiny, "train": {"global_batch": 16, "micro_batch": 1}}


def presets() -> dict[str, Preset]:
    """All presets by name."""
    base, large = _t5(768, 3072, 12, 12), _t5(1024, 4096, 16, 24)
    xxl = _t5(4096, 10240, 64, 24, activation="geglu", tied_embeddings=False)
    wide = _t5(2080, 6144, 30, 15, tied_embeddings=False)
    every = {"t5_base": base, "t5_large": large, "t5_xxl": xxl, "switch_tiny": _tiny()}
    for experts in (8, 16, 32, 64, 128, 256):
        every[f"switch_base_{experts}"] = _switch(base, experts, 6, (16, 16))
    every["switch_large_128"] = _switch(large, 128, 12, (8, 16))
    every["switch_xxl_128"] = _switch(xxl, 128, 12, (8, 16), min_capacity=2, eval_capacity_factor=4.0)
    every["switch_c_2048"] = _switch(wide, 2048, 15, (1, 1), min_capacity=2, capacity_factor=1.0)
    return every
