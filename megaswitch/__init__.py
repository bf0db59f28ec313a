"""Pretraining of Switch Transformers: see README.md for the rooms of the house.

`megaswitch.load(path)` gives the model of a checkpoint; it is imported only when asked for, so that the
command's help does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megaswitch.checkpoint.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from megaswitch.checkpoint.load import load

        return load
    raise AttributeError(f"module 'megaswitch' has no attribute {name!r}")
