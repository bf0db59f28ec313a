"""What a stage is made of, cut where its backward pass is cut: every piece has a graph of its own.

So a rank knows when the gradients of a piece's parameters are complete, can put the weights' part of it off, and lets
go of its activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megaswitch.layers.block import block_specs
from megaswitch.layers.embedding import embedding_specs
from megaswitch.layers.head import head_specs
from megaswitch.layers.norm import norm_specs
from megaswitch.layers.relative_bias import relative_bias_specs
from megaswitch.model.config import ModelConfig, Stack
from megaswitch.model.units import Unit
from megaswitch.params.spec import ParamSpec

STREAMS: dict[Stack, str] = {"encoder": "x", "decoder": "y"}
"""Name of each stack's residual stream in what is carried."""


@dataclass(frozen=True)
class Piece:
    """A unit of the model, or the relative-position bias that a stage's blocks of one stack share.

    Args:
        kind: "embed", "bias", "block" or "norm" (the decoder's with the head and the loss).
        stack: the stack.
        layer: a block's number.
        reads: names of carried tensors that it takes.
        writes: name of the one that it gives, new or in the place of one that it took.
        params: names of the parameters that it uses.
    """

    kind: Literal["embed", "bias", "block", "norm"]
    stack: Stack
    layer: int
    reads: tuple[str, ...]
    writes: str
    params: tuple[str, ...]

    @property
    def unit(self) -> Unit:
        """The model's unit."""
        assert self.kind != "bias"
        return Unit(self.kind, self.stack, self.layer)


def bias_name(stack: Stack) -> str:
    """Name of a stack's biases in what is carried inside a stage."""
    return f"{stack}_bias"


def pieces_of(config: ModelConfig, units: Sequence[Unit]) -> list[Piece]:
    """The pieces of a stage, in order: its units, and before the first block of each stack the biases."""
    pieces: list[Piece] = []
    for unit in units:
        name = bias_name(unit.stack)
        if unit.kind == "block" and not any(piece.writes == name for piece in pieces):
            specs = relative_bias_specs(f"{unit.stack}.relative_bias", config)
            pieces.append(Piece("bias", unit.stack, 0, (), name, _names(specs)))
        pieces.append(_piece(config, unit))
    return pieces


def _piece(config: ModelConfig, unit: Unit) -> Piece:
    stream = STREAMS[unit.stack]
    if unit.kind == "embed":
        return Piece("embed", unit.stack, 0, (), stream, _names(embedding_specs(config)))
    if unit.kind == "block":
        memory = ("memory",) if unit.stack == "decoder" else ()
        reads = (stream, *memory, bias_name(unit.stack))
        specs = block_specs(config, unit.stack, unit.layer)
        return Piece("block", unit.stack, unit.layer, reads, stream, _names(specs))
    specs = norm_specs(f"{unit.stack}.norm", config)
    if unit.stack == "decoder":
        return Piece("norm", unit.stack, 0, (stream,), "loss", _names([*specs, *head_specs(config)]))
    return Piece("norm", unit.stack, 0, (stream,), "memory", _names(specs))


def _names(specs: Sequence[ParamSpec]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs)
