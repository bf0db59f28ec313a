"""The models of the paper, as released and as printed, and a tiny one for a laptop.

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


_GEGLU: dict[str, Any] = {"activation": "geglu"}
_TIED: dict[str, Any] = {"tied_embeddings": True}
_UNTIED: dict[str, Any] = {"tied_embeddings": False}
_XXL: dict[str, Any] = {"min_capacity": 2, "eval_capacity_factor": 4.0}
_C: dict[str, Any] = {"min_capacity": 2, "capacity_factor": 1.0}
# width, hidden width, heads, blocks a stack
_T5_BASE = _t5(768, 3072, 12, 12)
_T5_LARGE = _t5(1024, 4096, 16, 24)
_T5_XXL = _t5(4096, 10240, 64, 24, **_GEGLU, **_UNTIED)
_WIDE = _t5(2080, 6144, 30, 15, **_UNTIED)
_GEGLU_BASE = _t5(768, 2048, 12, 12, **_GEGLU)
_GEGLU_LARGE = _t5(1024, 2816, 16, 24, **_GEGLU)
_WIDE_AS_PRINTED = _t5(2080, 6144, 32, 15, **_UNTIED)


def released() -> dict[str, Preset]:
    """The models whose weights were published (flaxformer's configurations), and a tiny one."""
    return {
        "switch_tiny": _tiny(),
        # dense model, experts, sparse blocks a stack, sequences of a routing group (encoder, decoder)
        **{f"switch_base_{experts}": _switch(_T5_BASE, experts, 6, (16, 16)) for experts in (8, 16, 32, 64, 128, 256)},
        "switch_large_128": _switch(_T5_LARGE, 128, 12, (8, 16)),
        "switch_xxl_128": _switch(_T5_XXL, 128, 12, (8, 16), **_XXL),
        "switch_c_2048": _switch(_WIDE, 2048, 15, (1, 1), **_C),
        "t5_base": _T5_BASE,
        "t5_large": _T5_LARGE,
        "t5_xxl": _T5_XXL,
    }


def variants() -> dict[str, Preset]:
    """Other models of the paper: those of its table 9 as printed, where what was released differs; T5 v1.1; few
    experts (figure 12); and the readings of the table that its parameter counts speak against."""
    return {
        "switch_base_128_as_printed": _switch(_GEGLU_BASE, 128, 6, (16, 16)),
        "switch_large_128_as_printed": _switch(_GEGLU_LARGE, 128, 12, (8, 16)),
        "switch_xxl_64_as_printed": _switch(_T5_XXL, 64, 12, (8, 16), **_XXL),
        "switch_c_2048_as_printed": _switch(_WIDE_AS_PRINTED, 2048, 15, (1, 1), **_C),
        "t5_base_as_printed": _GEGLU_BASE,
        "t5_large_as_printed": _GEGLU_LARGE,
        "t5_base_v1_1": _t5(768, 2048, 12, 12, **_GEGLU, **_UNTIED),
        "t5_large_v1_1": _t5(1024, 2816, 16, 24, **_GEGLU, **_UNTIED),
        "switch_base_2": _switch(_T5_BASE, 2, 6, (16, 16)),
        "switch_base_4": _switch(_T5_BASE, 4, 6, (16, 16)),
        "switch_xxl_64_all_sparse": _switch(_T5_XXL, 64, 24, (8, 16), **_XXL),
        "switch_xxl_128_tied": _switch(_T5_XXL, 128, 12, (8, 16), **_XXL, **_TIED),
        "switch_c_2048_as_printed_tied": _switch(_WIDE_AS_PRINTED, 2048, 15, (1, 1), **_C, **_TIED),
        "t5_xxl_tied": _t5(4096, 10240, 64, 24, **_GEGLU, **_TIED),
    }


def presets() -> dict[str, Preset]:
    """All presets by name."""
    return {**released(), **variants()}
