"""Imported models over several processes: loss and gradients that Hugging Face computed with the same weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.hugging_face import GRADIENTS, LOGITS, MODELS, SWITCH, arrays, convert, far, folder, ours
from parity.harness import Sample, Slices, gradients_of, place, slices_of, whole

from megaswitch.checkpoint.load import open_model
from megaswitch.checkpoint.training import restore
from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.config import ModelConfig
from megaswitch.model.record import Record
from megaswitch.optim.optimizer import master_state
from megaswitch.pipeline.schedule import forward_only
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.batches import make_work, read
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.step import compute_gradients, total_loss
from megaswitch.train.system import System, build


class Rows:
    """The three published rows as samples; what labels ignore is padding here."""

    def __init__(self, name: str) -> None:
        self.io = {key: value.numpy() for key, value in arrays(name, "io.npz").items()}

    def batch(self, first: int, count: int) -> Sample:
        rows, labels = slice(first, first + count), self.io["labels"]
        targets = np.where(labels == -100, 0, labels)[rows]
        return Sample(
            self.io["input_ids"][rows], self.io["decoder_input_ids"][rows], targets, np.arange(first, first + count)
        )


def config_of(model: ModelConfig, name: str, layout: LayoutConfig, aux: float) -> RunConfig:
    io = arrays(name, "io.npz")
    assert bool(((io["input_ids"] != 0) == io["attention_mask"].bool()).all()) and not bool((io["labels"] == 0).any())
    rows = io["input_ids"].shape[0]
    return RunConfig(
        model=replace(
            model,
            encoder_length=io["input_ids"].shape[1],
            decoder_length=io["labels"].shape[1],
            aux_loss_coef=aux,
            z_loss=0.0,
        ),
        layout=layout,
        train=TrainConfig(global_batch=rows, micro_batch=1, dtype="float32"),
    )


def system_of(checkpoint: Path, name: str, layout: LayoutConfig, aux: float) -> System:
    reader, model = open_model(checkpoint)
    system = build(config_of(model, name, layout, aux), place(), initialise=False)
    restore(reader, system.buckets, None)
    return system


def rank_gradients(checkpoint: Path, name: str, layout: LayoutConfig, aux: float) -> tuple[float, Slices, Slices]:
    """Loss, gradients and the weights that were restored."""
    system = system_of(checkpoint, name, layout, aux)
    record = compute_gradients(system, read(system, Rows(name), 0), 0)
    return total_loss(system, record), gradients_of(system), slices_of(master_state(system.buckets))


def layouts(name: str) -> dict[str, LayoutConfig]:
    """pp2, and tp2 with ep2 where the number of experts is even."""
    ep = 1 if name in ("allsparse_untied", "t5_v10", "t5_v11") else 2
    return {"pp2": LayoutConfig(pp=2), "tp2": LayoutConfig(tp=2, ep=ep)}


CASES = [(name, layout) for name in MODELS for layout in ("pp2", "tp2")]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("imported")
    for name in MODELS:
        assert convert("import", folder(name), root / name) == 0
    return lambda name: root / name


def check(world: Any, checkpoint: Path, name: str, layout: str, aux: float, file: str, loss: str) -> None:
    ranks = world(2, rank_gradients, checkpoint, name, layouts(name)[layout], aux)
    _, model = open_model(checkpoint)
    if model.num_experts and layout == "tp2":
        assert layouts(name)[layout].ep == (2 if model.num_experts % 2 == 0 else 1)
    expected = float(arrays(name, "io.npz")[loss])
    assert abs(ranks[0][0] - expected) < LOGITS * abs(expected) and ranks[1][0] == ranks[0][0]
    found, wrong = whole(rank[1] for rank in ranks), {}
    published = ours(arrays(name, file), model)
    assert found.keys() == published.keys()
    for parameter, gradient in published.items():
        mine = torch.from_numpy(found[parameter])
        wrong[parameter] = far(gradient.double(), mine) if gradient.abs().max() > 0 else float(mine.abs().max())
    assert max(wrong.values()) < GRADIENTS, {n: v for n, v in wrong.items() if v >= GRADIENTS}


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_gradients_of_the_cross_entropy(world, imported, name, layout):
    check(world, imported(name), name, layout, 0.0, "grads_ce.npz", "ce")


@pytest.mark.parametrize(("name", "layout"), [(n, layout) for n, layout in CASES if n in SWITCH])
def test_gradients_with_the_load_balancing_loss(world, imported, name, layout):
    check(world, imported(name), name, layout, 0.01, "grads_switch.npz", "switch_loss")


def rank_logits(checkpoint: Path, name: str, layout: LayoutConfig) -> list[tuple[int, torch.Tensor]]:
    """Logits [1, T, V part] of each row that this rank's last stage made, with the part's place in the vocabulary."""
    system = system_of(checkpoint, name, layout, 0.0)
    work = make_work(system, read(system, Rows(name), 0), 0, training=False)
    found: list[tuple[int, torch.Tensor]] = []
    for chunk in system.executor.chunks:
        if chunk.loss is not None:  # which is given what the head would make logits of
            chunk.loss.register_forward_pre_hook(
                lambda loss, args: found.append((loss.head.first, loss.head(args[0], WeightWork())))
            )
    schedule = forward_only(layout.pp, layout.num_chunks, system.num_microbatches)
    record = Record(system.config.model, torch.device("cpu"))
    system.executor.run(schedule[system.topology.pp.rank], work.batches, work.contexts, record, train=False)
    return found


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_logits(world, imported, name, layout):
    ranks = world(2, rank_logits, imported(name), name, layouts(name)[layout])
    parts: dict[int, list[torch.Tensor]] = {}
    for at, out in (item for rank in ranks for item in rank):
        parts.setdefault(at, []).append(out)
    logits = torch.cat([torch.cat(rows) for _, rows in sorted(parts.items())], -1)
    expected = arrays(name, "io.npz")["logits"]
    assert logits.shape[0] == 3 and len(parts) == (2 if layout == "tp2" else 1)
    assert far(expected, logits[:, : expected.shape[1]]) < LOGITS
