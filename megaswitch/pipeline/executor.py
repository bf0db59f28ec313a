"""Runs one rank's list of actions: what to compute is the schedule's, when to wait follows from what is needed.

B sequences of a micro-batch, L this rank's part of the tokens, D d_model.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from megaswitch.comm.p2p import Letter, Mailbox
from megaswitch.layers.context import Context
from megaswitch.layers.weight_work import WeightWork, Work
from megaswitch.model.config import ModelConfig
from megaswitch.model.micro_batch import MicroBatch, padded_length
from megaswitch.model.pieces import Piece
from megaswitch.model.record import Record
from megaswitch.model.stage import Carry, Stage, carried_after
from megaswitch.model.units import Unit
from megaswitch.ops.reference.products import PRODUCTS, Products
from megaswitch.pipeline.actions import Action, Kind
from megaswitch.pipeline.tape import Tape
from megaswitch.topology.placement import place_of, stage_of
from megaswitch.topology.topology import Topology

_SLOTS = ("x", "memory", "y")
Letters = Mapping[str, Letter]


class Storage(Protocol):
    """Where weights come from and gradients go (the optimizer's buckets)."""

    def await_weights(self, names: Iterable[str]) -> None:
        """Return when these parameters hold the weights of the last update."""
        ...

    def gradient_done(self, name: str) -> None:
        """Nothing more will be added to this parameter's gradient in this step."""
        ...


@dataclass
class _Run:
    """One step's work in progress, by (micro-batch, chunk) where it is of a pass."""

    batches: Sequence[MicroBatch]
    contexts: Sequence[Context]
    record: Record
    train: bool
    uses: Counter[str]
    """Backward passes of pieces that use a parameter and are still to come."""
    tapes: dict[tuple[int, int], Tape] = field(default_factory=dict)
    put_off: dict[tuple[int, int], list[tuple[Piece, list[Work]]]] = field(default_factory=dict)
    loss: Tensor | None = None


class Executor:
    """This rank's chunks of the pipeline."""

    def __init__(
        self,
        config: ModelConfig,
        chunks: Sequence[Stage],
        cuts: Sequence[Sequence[Unit]],
        topology: Topology,
        storage: Storage,
        mailbox: Mailbox,
        *,
        products: Products = PRODUCTS,
        v_placement: bool = False,
    ) -> None:
        """`cuts` are the units of every stage of the model, `chunks` this rank's stages in order; `products` do those
        with weights."""
        self.config, self.chunks, self.topology = config, list(chunks), topology
        self.storage, self.mailbox, self.v_placement = storage, mailbox, v_placement
        self.num_stages = len(cuts)
        self.carried = [carried_after(None), *(carried_after(units[-1]) for units in cuts)]
        self.work = WeightWork(products, eager=topology.tp.size == topology.ep.size == 1)
        """Weight gradients of the passes under way, for their contexts."""
        self.beat: Callable[[], None] = lambda: None
        """Called before every action: who watches over the run sees that it gets on."""

    def run(
        self,
        schedule: Sequence[Action],
        batches: Sequence[MicroBatch],
        contexts: Sequence[Context],
        record: Record,
        *,
        train: bool,
    ) -> Tensor | None:
        """Do the actions in order; gradients are added to the parameters. Returns this rank's share of the
        objective without auxiliary losses (None where no chunk holds the head).

        What the next pass receives is asked for before a pass is done, and waited for where it is used.
        """
        uses = Counter(name for chunk in self.chunks for piece in chunk.pieces for name in piece.params)
        run = _Run(batches, contexts, record, train, Counter({n: k * len(batches) for n, k in uses.items()}))
        passes = iter([action for action in schedule if action.kind is not Kind.WEIGHT])
        coming = self._expect(run, next(passes, None))
        for action in schedule:
            self.beat()
            if action.kind is Kind.WEIGHT:
                self._weights(run, action)
                continue
            letters, coming = coming, self._expect(run, next(passes, None))
            if action.kind is Kind.FORWARD:
                self._forward(run, action, letters)
            else:
                self._backward(run, action, letters)
        self.mailbox.flush()
        assert not run.tapes and not run.put_off, "a schedule left activations without a backward"
        return run.loss

    def _stage(self, chunk: int) -> int:
        return stage_of(self.v_placement, self.topology.pp.size, self.topology.pp.rank, chunk)

    def _forward(self, run: _Run, action: Action, letters: Letters) -> None:
        stage, chunk = self._stage(action.chunk), self.chunks[action.chunk]
        batch, ctx = run.batches[action.microbatch], run.contexts[action.microbatch]
        tape, carry = Tape(), {name: letter.wait() for name, letter in letters.items()}
        for piece in chunk.pieces:
            self.storage.await_weights(piece.params)
            if run.train:
                carry = tape.forward(chunk, piece, carry, batch, ctx, run.record)
            else:
                with torch.no_grad():
                    carry = {**carry, **chunk.run(piece, carry, batch, ctx, run.record)}
        if run.train:
            run.tapes[action.microbatch, action.chunk] = tape
        if stage == self.num_stages - 1:
            run.loss = carry["loss"] if run.loss is None else run.loss + carry["loss"]
            return
        for name in self.carried[stage + 1]:
            self._send(name, carry[name], action, stage, forward=True)

    def _backward(self, run: _Run, action: Action, letters: Letters) -> None:
        """Gradients of a pass; those of the weights are put off when only the inputs' are asked for."""
        stage, key = self._stage(action.chunk), (action.microbatch, action.chunk)
        self.work.held_back = action.kind is Kind.INPUT
        grads: Carry = {}
        for piece in run.tapes.pop(key).backward(letters, grads):
            if self.work.held_back:
                run.put_off.setdefault(key, []).append((piece, self.work.take()))
            else:
                self._finish(run, piece, self.work.take())
        for name in self.carried[stage]:
            self._send(name, grads[name], action, stage, forward=False)

    def _weights(self, run: _Run, action: Action) -> None:
        """Do what a backward of the inputs has put off."""
        for piece, works in run.put_off.pop((action.microbatch, action.chunk)):
            self._finish(run, piece, works)

    def _finish(self, run: _Run, piece: Piece, works: Sequence[Work]) -> None:
        """Compute a piece's weight gradients, and tell which parameters' are then complete."""
        for work in works:
            work()
        for name in piece.params:
            run.uses[name] -= 1
            if not run.uses[name]:
                self.storage.gradient_done(name)

    def _tag(self, name: str, microbatch: int, border: int, forward: bool) -> int:
        """Unique for a tensor on the border before a stage; even for gradients, odd for activations."""
        number = (microbatch * self.num_stages + border) * len(_SLOTS) + _SLOTS.index(name)
        return 2 * number + forward

    def _place(self, stage: int) -> int:
        """The pipeline rank of a stage."""
        return place_of(self.v_placement, self.topology.pp.size, stage)[0]

    def _send(self, name: str, tensor: Tensor, action: Action, stage: int, *, forward: bool) -> None:
        to, border = (stage + 1, stage + 1) if forward else (stage - 1, stage)
        self.mailbox.send(tensor, self._place(to), self._tag(name, action.microbatch, border, forward))

    def _expect(self, run: _Run, action: Action | None) -> Letters:
        """What a pass takes from other ranks."""
        if action is None:
            return {}
        stage, forward = self._stage(action.chunk), action.kind is Kind.FORWARD
        last = stage == self.num_stages - 1
        if last and not forward:
            return {}
        source, border = (stage - 1, stage) if forward else (stage + 1, stage + 1)
        batch, dtype = run.batches[action.microbatch], self.chunks[action.chunk].dtype
        letters = {}
        for name in self.carried[border]:
            tag, shape = self._tag(name, action.microbatch, border, forward), self._shape(name, batch)
            letters[name] = self.mailbox.expect(shape, dtype, batch.samples_B.device, self._place(source), tag)
        return letters

    def _shape(self, name: str, batch: MicroBatch) -> tuple[int, int, int]:
        """[B, L, D] of a carried tensor: known, never probed."""
        length = self.config.length("decoder" if name == "y" else "encoder")
        length = padded_length(length, self.topology.tp.size)
        split = self.topology.tp.size if self.topology.sequence_parallel else 1
        return batch.samples_B.shape[0], length // split, self.config.d_model
