"""A checkpoint of any layout is, to the bit, that of any other which loads it; and training goes on from it as it
would have where it was written. All in float64."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from train.corpus import here, tiny_run, with_train, write_corpus

from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.store import save
from megaswitch.checkpoint.training import restore, training_pieces
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.config import RunConfig
from megaswitch.train.loop import train
from megaswitch.train.system import build

HALF, WHOLE = 2, 4
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "dp2": (2, {}),
    "dp4": (4, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "pp2-one-chunk": (2, {"pp": 2, "chunks": 1}),
    "ep2": (2, {"ep": 2}),
    "ep4": (4, {"ep": 4}),
    "tp2-etp2": (2, {"tp": 2, "etp": 2}),
    "tp2-ep4": (4, {"tp": 2, "ep": 4}),
    "pp2-ep2": (4, {"pp": 2, "ep": 2}),
    "pp2-tp2-ep2": (8, {"pp": 2, "tp": 2, "ep": 2}),
}
QUICK = [("pp2-tp2-ep2", "tp2-etp2"), ("ep4", "pp2-one-chunk")]


def laid_out(config: RunConfig, name: str, optimizer: str) -> RunConfig:
    layout = LayoutConfig(**LAYOUTS[name][1])
    return replace(config, layout=layout, optim=replace(config.optim, name=optimizer))


def run(world, name: str, config: RunConfig) -> Path:
    """Trains in a layout; the checkpoint at the end."""
    ranks = LAYOUTS[name][0]
    assert world(ranks, lambda: train(config, here()), limit=110) == [0] * ranks
    return committed(Path(config.run.dir) / "checkpoints")[0]


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    """`written(layout, optimizer)` is a configuration and its checkpoint after the first half, made once."""
    folder = tmp_path_factory.mktemp("resharding")
    corpus = write_corpus(folder / "corpus")
    made: dict[tuple[str, str], tuple[RunConfig, Path]] = {}

    def first_half(name: str, optimizer: str) -> tuple[RunConfig, Path]:
        if (name, optimizer) not in made:
            config = laid_out(tiny_run(folder / f"{name}-{optimizer}", corpus), name, optimizer)
            config = with_train(config, steps=WHOLE, stop_after=HALF)
            made[name, optimizer] = config, run(world, name, config)
        return made[name, optimizer]

    return first_half


@pytest.fixture(scope="module")
def straight(world, written, tmp_path_factory):
    """`straight(optimizer)` is what one process has after both halves."""
    made: dict[str, dict[str, torch.Tensor]] = {}

    def tensors(optimizer: str) -> dict[str, torch.Tensor]:
        if optimizer not in made:
            config, _ = written("one", optimizer)
            folder = tmp_path_factory.mktemp("straight")
            config = with_train(replace(config, run=replace(config.run, dir=str(folder))), stop_after=0)
            made[optimizer] = everything(run(world, "one", config))
        return made[optimizer]

    return tensors


def everything(path: Path) -> dict[str, torch.Tensor]:
    reader = Reader(path)
    return {name: reader.read_all(name) for name in reader.tensors}


def loaded_and_saved(config: RunConfig, source: Path, root: Path) -> None:
    """What a rank of this layout makes of a checkpoint, written at once."""
    system = build(config, here(), initialise=False)
    reader = Reader(source, verify=False)
    restore(reader, system.buckets, system.optimizer)
    group = dist.group.WORLD if dist.get_world_size() > 1 else None
    save(root, reader.step, training_pieces(system.buckets, system.optimizer), dict(reader.state), group)


def prove(world, tmp_path: Path, written, straight, first: str, second: str, optimizer: str) -> None:
    """Exact when only loaded; right, to rounding, when trained on."""
    config, source = written(first, optimizer)
    other, expected = laid_out(config, second, optimizer), everything(source)
    world(LAYOUTS[second][0], loaded_and_saved, other, source, tmp_path / "again")
    found = everything(tmp_path / "again" / source.name)
    assert expected.keys() == found.keys()
    assert len({name.partition("/")[0] for name in expected}) >= 3, "weights and two kinds of optimizer state"
    for name, tensor in expected.items():
        assert tensor.dtype == torch.float64 or not tensor.is_floating_point(), name
        assert torch.equal(tensor, found[name]), name
    target = replace(other.run, dir=str(tmp_path / "on"))
    on = replace(with_train(other, stop_after=0), run=target, checkpoint=replace(other.checkpoint, resume=str(source)))
    after = everything(run(world, second, on))
    for name, tensor in straight(optimizer).items():
        assert (tensor - after[name]).abs().max() <= 1e-9 * tensor.abs().max(), name


@pytest.mark.parametrize("first,second", QUICK)
def test_some_pairs_of_layouts(world, tmp_path, written, straight, first, second):
    prove(world, tmp_path, written, straight, first, second, "adamw" if first == "ep4" else "adafactor")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("first", LAYOUTS)
def test_every_pair_of_layouts(world, tmp_path, written, straight, first, optimizer):
    for second in LAYOUTS:
        prove(world, tmp_path / second, written, straight, first, second, optimizer)


def test_there_are_twelve_layouts_and_the_quick_ones_are_among_their_pairs():
    assert len(LAYOUTS) == 12 and set(QUICK) <= set(product(LAYOUTS, repeat=2))
