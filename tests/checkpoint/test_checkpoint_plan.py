"""A checkpoint of a world that is only thought of: every rank writes what it would hold, others read it."""

from dataclasses import replace

import pytest
import torch
from train.corpus import tiny_run

from megaswitch.checkpoint.format import TensorInfo, shard_name
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.rewrite import Part
from megaswitch.checkpoint.shard import write_shard
from megaswitch.checkpoint.store import assemble, write_manifest
from megaswitch.train.plan import tensors_of_rank


def value(name, box, shape):
    """Elements that say where they are: their place in the tensor, and a number of its name."""
    at = torch.zeros(box.shape, dtype=torch.float64)
    for dim, (offset, count, size) in enumerate(zip(box.offset, box.shape, shape, strict=True)):
        index = torch.arange(offset, offset + count, dtype=torch.float64)
        at = at * size + index.view(-1, *(1 for _ in shape[dim + 1 :]))
    return at + sum(name.encode()) * 1e6


def run_of(tmp_path, layout, **model):
    config = tiny_run(tmp_path, tmp_path / "corpus", **layout)
    config = replace(config, optim=replace(config.optim, name="adamw"))
    return replace(config, model=replace(config.model, d_model=32, **model))


def write_as(config, world, folder):
    """What all ranks would write, by their plans."""
    folder.mkdir()
    reports, elements = [], 0
    for rank in range(world):
        mine = {}
        for t in tensors_of_rank(config, world, rank):
            if t.primary:
                assert tuple(t.view.shape) == t.box.shape
                part = Part(t.name, TensorInfo(t.global_shape, torch.float64), t.box)
                mine[part.key] = value(t.name, t.box, t.global_shape), part.row
        info = write_shard(folder / shard_name(rank), {key: x for key, (x, _) in mine.items()})
        rows = [row for _, row in mine.values()]
        reports.append({"name": info.name, "size": info.size, "hash": info.hash, "slices": rows})
        elements += sum(x.numel() for x, _ in mine.values())
    write_manifest(folder, assemble(1, {}, reports))
    return elements


def read_as(config, world, ranks, folder):
    """What these ranks of another layout read."""
    reader, elements = Reader(folder), 0
    for rank in ranks:
        for t in tensors_of_rank(config, world, rank):
            assert torch.equal(reader.read(t.name, t.box), value(t.name, t.box, t.global_shape)), (rank, t.name)
            elements += t.box.size
    return elements


def prove(tmp_path, world, first, second, other_world, ranks):
    config = run_of(tmp_path, first, num_experts=64)
    elements = write_as(config, world, tmp_path / "c")
    reader = Reader(tmp_path / "c")
    assert elements == sum(torch.Size(info.shape).numel() for info in reader.tensors.values())  # each once
    assert len(list((tmp_path / "c").glob("shard-*"))) == world
    assert read_as(run_of(tmp_path, second, num_experts=64), other_world, ranks, tmp_path / "c") > 0


def test_128_ranks_are_read_by_96(tmp_path):
    prove(tmp_path, 128, {"tp": 2, "pp": 2, "ep": 32}, {"pp": 3, "ep": 16, "chunks": 1}, 96, range(0, 96, 5))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_2048_ranks_are_read_by_2048_of_another_layout_and_by_one(tmp_path):
    first, second = {"tp": 4, "pp": 2, "ep": 64}, {"tp": 2, "pp": 4, "ep": 32, "chunks": 1}
    prove(tmp_path, 2048, first, second, 2048, range(2048))
    read_as(run_of(tmp_path, {}, num_experts=64), 1, [0], tmp_path / "c")
