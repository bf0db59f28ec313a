"""One pass of a micro-batch through a stage, piece by piece, so that its backward goes piece by piece too."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megaswitch.comm.p2p import Letter
from megaswitch.layers.context import Context
from megaswitch.model.micro_batch import MicroBatch
from megaswitch.model.pieces import Piece
from megaswitch.model.record import Record
from megaswitch.model.stage import Carry, Stage


@dataclass
class _Link:
    """A piece's own graph, from `inputs` (leaves) to `output`."""

    piece: Piece
    inputs: Carry
    output: Tensor


@dataclass
class Tape:
    """What the forward of one micro-batch through one stage leaves for its backward."""

    _links: list[_Link] = field(default_factory=list)

    def forward(
        self, stage: Stage, piece: Piece, carry: Carry, batch: MicroBatch, ctx: Context, record: Record
    ) -> Carry:
        """Run a piece on what it reads, in a graph of its own; returns `carry` with what it wrote."""
        inputs = {name: carry[name].detach().requires_grad_() for name in piece.reads}
        with torch.enable_grad():
            output = stage.run(piece, inputs, batch, ctx, record)[piece.writes]
        self._links.append(_Link(piece, inputs, output))
        return {**carry, piece.writes: output.detach()}

    def backward(self, arriving: Mapping[str, Letter], grads: Carry) -> Iterator[Piece]:
        """Go back through the pieces, last first, and yield each once its backward has run; lets go of each.

        `arriving` are gradients of what the stage gave, waited for where they are used; `grads` ends up with those
        of what the stage took.
        """
        late = dict(arriving)
        while self._links:
            link = self._links.pop()
            if link.piece.writes == "loss":
                torch.autograd.backward([link.output])
            else:
                torch.autograd.backward([link.output], [_take(link.piece.writes, grads, late)])
            for name, tensor in link.inputs.items():
                assert tensor.grad is not None
                grads[name] = tensor.grad if name not in grads else grads[name].add_(tensor.grad)
            yield link.piece
        for name in [*late]:
            grads[name] = _take(name, grads, late)


def _take(name: str, grads: Carry, late: dict[str, Letter]) -> Tensor:
    """The gradient of a carried tensor: what later pieces of this stage gave, and what the next stage sent."""
    parts = [grads.pop(name)] if name in grads else []
    parts += [late.pop(name).wait()] if name in late else []
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
