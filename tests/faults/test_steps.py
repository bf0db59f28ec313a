"""Numbers that go wrong: NaN, spikes of the loss, weights that differ between ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults.harness import assert_same, guarded, run, small_run, weights
from train.corpus import with_train

from megaswitch.checkpoint.choose import committed
from megaswitch.model.record import LayerRecord, StepRecord
from megaswitch.optim.bucket import Bucket
from megaswitch.train import loop
from megaswitch.train import step as step_module
from megaswitch.train.guards import Routers
from megaswitch.train.replicas import checksum, odd_ones
from megaswitch.train.spikes import Spikes


def poison_gradient(at, ranks, times=1):
    """NaN in one element of some ranks' own gradients, just before they are summed; `times` attempts in a row."""

    def arm(rank):
        zero, compute, state = Bucket.zero_grad, step_module.compute_gradients, {"left": 0}

        def zeroed(bucket):
            zero(bucket)
            if state["left"] and rank in ranks and bucket.kind.data_axis == "dp":
                state["left"] -= 1
                bucket.grads[0] = float("nan")

        def counted(system, sequences, number, **more):
            if number == at and "done" not in state:
                state["left"], state["done"] = times, True
            return compute(system, sequences, number, **more)

        Bucket.zero_grad, step_module.compute_gradients = zeroed, counted

    return arm


def metrics(config):
    return [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]


def adamw(config):
    """Its bias correction shows whether updates are counted right."""
    return replace(config, optim=replace(config.optim, name="adamw"))


def test_a_nan_of_one_rank_is_skipped_by_all_and_a_resumed_run_knows(tmp_path, corpus):
    straight = adamw(small_run(tmp_path / "straight", corpus, every=0))
    codes, said = run(2, straight, poison_gradient(1, ranks=[1]))
    assert codes == [0, 0], said
    assert "step 2 is skipped (1 in a row of at most 10)" in said and "gradients of ranks [1] are not finite" in said
    lines = metrics(straight)
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert [line["samples"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert lines[1]["grad_norm"] is None and lines[2]["grad_norm"] > 0
    stopped = adamw(small_run(tmp_path / "stopped", corpus, every=0))
    assert run(2, with_train(stopped, stop_after=3), poison_gradient(1, ranks=[1]))[0] == [0, 0]
    codes, said = run(2, stopped)
    assert codes == [0, 0] and "of these steps 1 were skipped" in said
    assert_same(weights(straight), weights(stopped))


def test_a_passing_fault_is_told_from_a_lasting_one_by_a_second_attempt(tmp_path, corpus, undisturbed):
    config = guarded(small_run(tmp_path / "passing", corpus, ep=2), rerun=True)
    codes, said = run(2, config, poison_gradient(3, ranks=[0]))
    assert codes == [0, 0] and "step 4 was not finite, but was when it was computed again" in said, said
    assert_same(weights(config), undisturbed(2, ep=2))
    config = guarded(small_run(tmp_path / "lasting", corpus, ep=2), rerun=True)
    codes, said = run(2, config, poison_gradient(3, ranks=[0], times=9))
    assert codes == [0, 0] and "the same when computed again" in said, said


def test_nan_in_one_expert_ends_the_run_with_a_dump(tmp_path, corpus):
    def arm(rank):
        original = loop.train_step

        def poisoned(system, sequences, number, **more):
            if number == 2 and rank == 1:
                system.buckets.await_weights(system.buckets.params)
                name = next(n for n, spec in system.buckets.specs.items() if spec.expert)
                with torch.no_grad():
                    system.buckets.params[name].view(-1)[0] = float("nan")
            return original(system, sequences, number, **more)

        loop.train_step = poisoned

    config = guarded(small_run(tmp_path, corpus, ep=2), nonfinite_limit=3)
    codes, said = run(2, config, arm)
    assert codes == [78, 78], said
    assert "weights are not finite on ranks [1]" in said and "as 3 steps in a row" in said
    assert "step 3: weights are not finite, and no checkpoint is written of them" in said
    assert committed(tmp_path / "checkpoints")[0].name == "step-00000002"
    dump = json.loads((tmp_path / "nonfinite" / "step-00000005" / "rank-00001.json").read_text())
    poisoned = {name: counts["weights"] for name, counts in dump["parameters"].items() if counts["weights"]}
    assert list(poisoned.values()) == [1] and "expert" in next(iter(poisoned)), poisoned
    assert dump["step"] == 5 and dump["rank"] == 1 and dump["samples"] == [[18, 1], [19, 1]]
    assert dump["loss"] == "nan"


def test_a_spike_is_gone_back_from_and_its_batches_are_left_out(tmp_path, corpus):
    def arm(rank):
        original, state = loop.train_step, {}

        def spiking(system, sequences, number, **more):
            result = original(system, sequences, number, **more)
            if number == 8 and not state:
                state["done"] = True
                return replace(result, loss=100 * result.loss)
            return result

        loop.train_step = spiking

    config = guarded(with_train(small_run(tmp_path, corpus, every=4, ep=2), steps=12), spike_factor=50, spike_window=8)
    codes, said = run(2, config, arm)
    assert codes == [0, 0], said
    assert "step 9: the loss stands out; going back to step 8, past the samples 32 to 35" in said
    lines = metrics(config)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["samples"] for line in lines] == [*range(4, 36, 4), 40, 44, 48, 52]


def test_what_is_a_spike():
    spikes = Spikes(5.0, 10)
    assert [spikes.is_spike(x) for x in (3.0, 2.9, 3.1, 2.8, 1000.0)] == [False] * 5, "too little is known yet"
    spikes = Spikes(5.0, 10)
    wandering = [3.0, 2.9, 3.1, 2.8, 3.0, 2.9, 2.7, 3.1, 2.9]
    assert not any(spikes.is_spike(x) for x in wandering)
    assert spikes.is_spike(4.0) and not spikes.is_spike(3.2) and not spikes.is_spike(0.1)
    assert not any(Spikes(0.0, 10).is_spike(x) for x in [*wandering, 1e9])


@pytest.mark.parametrize("zero", [True, False])
def test_a_flipped_bit_in_one_replica_is_named(tmp_path, corpus, zero):
    def arm(rank):
        original = loop.train_step

        def flipping(system, sequences, number, **more):
            result = original(system, sequences, number, **more)
            if number == 3 and rank == 2:
                system.buckets.await_weights(system.buckets.params)
                name = next(n for n, spec in system.buckets.specs.items() if spec.part == "norms")
                with torch.no_grad():
                    system.buckets.params[name].view(torch.int64)[1] ^= 1
            return result

        loop.train_step = flipping

    config = guarded(small_run(tmp_path, corpus), replicas_every=2)
    config = replace(config, optim=replace(config.optim, zero=zero))
    codes, said = run(4, config, arm)
    assert codes == [76] * 4, said
    assert "step 4: weights that should be equal are not: " in said and " of rank 2 (among" in said


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "layout", [{"pp": 2, "tp": 2}, pytest.param({"tp": 2, "etp": 2}, marks=LONG), pytest.param({"ep": 2}, marks=LONG)]
)
def test_replicas_that_are_alike_pass(tmp_path, corpus, layout):
    config = with_train(small_run(tmp_path, corpus, every=0, **layout), steps=2)
    codes, said = run(4, guarded(config, replicas_every=1))
    assert codes == [0] * 4, said


def test_checksums():
    x = torch.arange(10_000, dtype=torch.float32)
    own = checksum(x)
    for dtype in (torch.bfloat16, torch.float64):
        assert checksum(x.to(dtype)).shape == (2,)
    flipped, exchanged = x.clone(), x.clone()
    flipped.view(torch.int32)[77] ^= 1
    exchanged[[5, 6]] = exchanged[[6, 5]]
    assert not torch.equal(checksum(flipped), own) and not torch.equal(checksum(exchanged), own)
    assert odd_ones([[1, 2], [1, 2], [3, 2]]) == [2]
    assert odd_ones([[1, 2], [3, 2]]) == [0, 1] and odd_ones([[1, 2]] * 3) == []


def test_a_collapsed_router_is_told_once(caplog):
    def record(*load):
        layer = LayerRecord(aux=1.0, z=0.0, dropped=3.0, routed=sum(load), entropy=0.0, load=list(load))
        return StepRecord(1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, {"encoder.1": layer})

    routers = Routers(0.9)
    routers.look(1, record(50.0, 50.0))
    assert not caplog.records
    routers.look(2, record(99.0, 1.0))
    routers.look(3, record(100.0, 0.0))
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["step 2"]
    assert "the router of encoder.1 has collapsed: 99% of the tokens want expert 0 of 2" in caplog.text
    routers.look(4, record(60.0, 40.0))
    routers.look(5, record(0.0, 100.0))
    assert "step 5: the router" in caplog.text


def test_a_run_whose_tokens_all_want_one_expert_goes_on(tmp_path, corpus):
    def arm(rank):
        original = loop.train_step

        def collapsed(system, sequences, number, **more):
            system.buckets.await_weights(system.buckets.params)
            with torch.no_grad():
                for name, spec in system.buckets.specs.items():
                    if spec.part == "router":
                        system.buckets.params[name].zero_()  # equal logits: the first expert wins every tie
            return original(system, sequences, number, **more)

        loop.train_step = collapsed

    codes, said = run(2, small_run(tmp_path, corpus, ep=2), arm)
    assert codes == [0, 0], said
    assert "has collapsed: 100% of the tokens want expert 0 of 4" in said
