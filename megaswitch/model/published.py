"""What the paper prints of its models, to stand beside what we count (no torch here)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Figures as rounded in print: parameters, forward FLOPs of a sequence (None where not printed), and where."""

    parameters: float
    flops_per_sequence: float | None
    source: str


_T5_BASE = Published(223e6, 124e9, "tables 6 and 9")
_T5_LARGE = Published(739e6, 425e9, "the text and table 9")
_T5_XXL = Published(11e9, 6.3e12, "table 9")
_BASE = Published(7.41e9, 124e9, "tables 8 and 9")
_LARGE = Published(26e9, 425e9, "table 9")
_XXL = Published(395e9, 6.3e12, "table 9")
_C = Published(1571e9, 890e9, "table 9")

PUBLISHED = {
    "t5_base": _T5_BASE,
    "t5_base_as_printed": _T5_BASE,
    "t5_large": _T5_LARGE,
    "t5_large_as_printed": _T5_LARGE,
    "t5_xxl": _T5_XXL,
    "switch_base_16": Published(1.1e9, None, "table 7"),
    "switch_base_32": Published(2.0e9, None, "table 7"),
    "switch_base_64": Published(3.8e9, None, "tables 6 and 7"),
    "switch_base_128": _BASE,
    "switch_base_128_as_printed": _BASE,
    "switch_base_256": Published(14.7e9, None, "table 7"),
    "switch_large_128": _LARGE,
    "switch_large_128_as_printed": _LARGE,
    "switch_xxl_128": _XXL,
    "switch_xxl_64_as_printed": _XXL,
    "switch_c_2048": _C,
    "switch_c_2048_as_printed": _C,
}
"""By preset; a preset "as printed" has the dimensions of the same table, and need not come to its figures."""
