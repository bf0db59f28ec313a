"""Collectives are issued early and waited for where their result is used: a trace of real steps shows it."""

from dataclasses import replace

import pytest
import torch
from parity.harness import RandomSource, place, small

from megaswitch.topology.config import LayoutConfig
from megaswitch.train.batches import read
from megaswitch.train.config import RunConfig
from megaswitch.train.step import train_step
from megaswitch.train.system import build

KERNELS = "megaswitch_cpp::"
WEIGHT_PRODUCTS = ("aten::addmm_", f"{KERNELS}add_outer_", f"{KERNELS}add_grouped_")
END = "end of the steps"
PRODUCTS = ("aten::mm", "aten::bmm", f"{KERNELS}times", f"{KERNELS}grouped_", *WEIGHT_PRODUCTS)


def trace(config: RunConfig) -> list[str]:
    """Names of what one rank's main thread did in its second and third step, in order."""
    system, source = build(config, place()), RandomSource(config.model)
    size = config.train.global_batch
    train_step(system, read(system, source, 0), 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for step in (1, 2):
            train_step(system, read(system, source, size * step), step)
        with torch.profiler.record_function(END):  # a collective that ends while the profile does crashes torch
            system.buckets.await_weights(system.buckets.params)
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    names = [e.name for e in events if e.name.startswith(("c10d::", "wait:", END, *PRODUCTS))]
    return names[: names.index(END)]


def between(names: list[str], start: str, wait: str) -> list[list[str]]:
    """What lies between each `start` and the first `wait` after it."""
    starts = [i for i, name in enumerate(names) if name == start]
    assert starts, f"no {start} in {sorted(set(names))}"
    return [names[i + 1 : names.index(wait, i)] for i in starts if wait in names[i:]]


def with_weight_product(spans: list[list[str]]) -> int:
    return sum(any(name in WEIGHT_PRODUCTS for name in span) for span in spans)


def names_of(world, n: int, **layout) -> list[str]:
    config = small()
    # small buckets, so that some are full before the backward ends
    optim, train = replace(config.optim, bucket_elements=1000), replace(config.train, micro_batch=2, global_batch=4 * n)
    return world(n, trace, replace(config, layout=LayoutConfig(**layout), optim=optim, train=train), limit=110.0)[0]


def test_tokens_come_back_while_weight_gradients_are_computed(world):
    """The gradients of the rows that experts received travel home behind the experts' weight products."""
    spans = between(names_of(world, 2, ep=2), "c10d::alltoall_base_", "wait:all_to_all:ep")
    layers, micro_batches, steps = 4, 2, 2
    found = with_weight_product(spans)
    assert found > layers * micro_batches * steps / 2, "but for micro-batches that send a rank nothing"


@pytest.mark.parametrize("split", [True, False])
def test_tensor_parallel_regions_are_left_behind_weight_gradients(world, split):
    start, wait = ("reduce_scatter_base_", "reduce_scatter") if split else ("allreduce_", "all_reduce")
    start = "c10d::_" + start if split else "c10d::" + start
    spans = between(names_of(world, 2, tp=2, sequence_parallel=split), start, f"wait:{wait}:tp")
    blocks, steps, micro_batches = 8, 2, 4
    assert with_weight_product(spans) >= blocks * steps * micro_batches


def test_gradients_are_reduced_while_the_backward_goes_on(world):
    names = names_of(world, 2)
    spans = between(names, "c10d::_reduce_scatter_base_", "wait:reduce_scatter:dp")
    assert with_weight_product(spans) >= len(spans) / 2, "most buckets are full before the backward ends"


def test_weights_are_gathered_while_the_forward_goes_on(world):
    names = names_of(world, 2)
    first = names.index("c10d::_allgather_base_")
    waits = [i for i, name in enumerate(names) if name == "wait:all_gather:dp" and i > first]
    assert any(name in PRODUCTS for name in names[waits[0] : waits[-1]]), "the first blocks do not wait for the last"


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_a_pass_is_computed_while_the_next_one_arrives(world, schedule):
    spans = between(names_of(world, 2, pp=2, schedule=schedule), "c10d::recv_", "wait:receive:pp")
    assert sum(any(name in PRODUCTS for name in span) for span in spans) > len(spans) / 4
