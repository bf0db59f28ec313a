"""Runs one rank's list of actions: what to compute is the schedule's, when to wait follows from what is needed.

B sequences of a micro-batch, L this rank's part of the tokens, D d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megaswitch.comm.p2p import Mailbox
from megaswitch.layers.context import Context
from megaswitch.model.config import ModelConfig
from megaswitch.model.micro_batch import MicroBatch, padded_length
from megaswitch.model.record import Record
from megaswitch.model.stage import Carry, Stage, carried_after
from megaswitch.model.units import Unit
from megaswitch.pipeline.schedule import Action, Kind
from megaswitch.topology.topology import Topology

_SLOTS = ("x", "memory", "y")


@dataclass
class _Live:
    """What a forward leaves for its backward."""

    inputs: Carry
    outputs: Carry


@dataclass
class _Run:
    """One step's work in progress."""

    batches: Sequence[MicroBatch]
    contexts: Sequence[Context]
    record: Record
    train: bool
    live: dict[tuple[int, int], _Live] = field(default_factory=dict)
    loss: Tensor | None = None


class Executor:
    """This rank's chunks of the pipeline, stage s being chunk s // pp of rank s % pp."""

    def __init__(
        self, config: ModelConfig, chunks: Sequence[Stage], cuts: Sequence[Sequence[Unit]], topology: Topology
    ) -> None:
        """`cuts` are the units of every stage of the model, `chunks` this rank's stages in order."""
        self.config, self.chunks, self.topology = config, list(chunks), topology
        self.num_stages = len(cuts)
        self.carried = [carried_after(None), *(carried_after(units[-1]) for units in cuts)]
        self.mailbox = Mailbox(topology.pp)

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
        objective without auxiliary losses (None where no chunk holds the head)."""
        run = _Run(batches, contexts, record, train)
        for action in schedule:
            if action.kind is Kind.FORWARD:
                self._forward(run, action)
            else:
                self._backward(run, action)
        self.mailbox.flush()
        assert not run.live or not train, "a schedule left activations without a backward"
        return run.loss

    def _stage(self, chunk: int) -> int:
        return chunk * self.topology.pp.size + self.topology.pp.rank

    def _forward(self, run: _Run, action: Action) -> None:
        stage, batch = self._stage(action.chunk), run.batches[action.microbatch]
        inputs = {name: self._receive(name, batch, action, stage, forward=True) for name in self.carried[stage]}
        with torch.set_grad_enabled(run.train):
            inputs = {name: tensor.requires_grad_(run.train) for name, tensor in inputs.items()}
            outputs = self.chunks[action.chunk](inputs, batch, run.contexts[action.microbatch], run.record)
        if run.train:
            run.live[action.microbatch, action.chunk] = _Live(inputs, outputs)
        if stage == self.num_stages - 1:
            loss = outputs["loss"].detach()
            run.loss = loss if run.loss is None else run.loss + loss
            return
        for name in self.carried[stage + 1]:
            self._send(name, outputs[name], action, stage, forward=True)

    def _backward(self, run: _Run, action: Action) -> None:
        stage, batch = self._stage(action.chunk), run.batches[action.microbatch]
        live = run.live.pop((action.microbatch, action.chunk))
        if stage == self.num_stages - 1:
            torch.autograd.backward([live.outputs["loss"]])
        else:
            names = self.carried[stage + 1]
            grads = [self._receive(name, batch, action, stage, forward=False) for name in names]
            torch.autograd.backward([live.outputs[name] for name in names], grads)
        for name, tensor in live.inputs.items():
            assert tensor.grad is not None
            self._send(name, tensor.grad, action, stage, forward=False)

    def _tag(self, name: str, microbatch: int, border: int, forward: bool) -> int:
        """Unique for a tensor on the border before a stage."""
        number = (microbatch * self.num_stages + border) * len(_SLOTS) + _SLOTS.index(name)
        return 2 * number + forward

    def _send(self, name: str, tensor: Tensor, action: Action, stage: int, *, forward: bool) -> None:
        to, border = (stage + 1, stage + 1) if forward else (stage - 1, stage)
        self.mailbox.send(tensor, to % self.topology.pp.size, self._tag(name, action.microbatch, border, forward))

    def _receive(self, name: str, batch: MicroBatch, action: Action, stage: int, *, forward: bool) -> Tensor:
        source, border = (stage - 1, stage) if forward else (stage + 1, stage + 1)
        tag = self._tag(name, action.microbatch, border, forward)
        shape, chunk = self._shape(name, batch), self.chunks[action.chunk]
        device = batch.samples_B.device
        return self.mailbox.receive(shape, chunk.dtype, device, source % self.topology.pp.size, tag)

    def _shape(self, name: str, batch: MicroBatch) -> tuple[int, int, int]:
        """[B, L, D] of a carried tensor: known, never probed."""
        length = self.config.length("decoder" if name == "y" else "encoder")
        length = padded_length(length, self.topology.tp.size)
        split = self.topology.tp.size if self.topology.sequence_parallel else 1
        return batch.samples_B.shape[0], length // split, self.config.d_model
