"""What is told of a rank, held to closed formulas, published numbers, and files that are written."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.harness import place, small

from megaswitch.checkpoint.format import shard_name, step_name
from megaswitch.checkpoint.training import Progress, save_training
from megaswitch.config.documents import to_dict
from megaswitch.dry_run.facts import facts_of
from megaswitch.dry_run.look import look
from megaswitch.dry_run.step import play
from megaswitch.model.presets import presets
from megaswitch.model.published import PUBLISHED
from megaswitch.ops.config import OpsConfig
from megaswitch.optim.config import OptimConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.start import cpu_group
from megaswitch.train.config import RunConfig, TrainConfig
from megaswitch.train.system import build

BLOCKS = {"num_encoder_layers": 2, "num_decoder_layers": 2}
SPARSE = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
SMALL = small(**BLOCKS, **SPARSE)


def preset(name: str, **sections) -> RunConfig:
    values = presets()[name]
    config = RunConfig(model=replace(RunConfig().model, preset=name, **values["model"]))
    train = {**values["train"], "dtype": "bfloat16", **sections.pop("train", {})}
    return replace(config, train=TrainConfig(**train), **sections)


def shard_sizes(config: RunConfig, folder: Path) -> int:
    """Save a real checkpoint; the size of this rank's shard."""
    here = place()
    system = build(config, here)
    group = cpu_group(here, 60.0)
    save_training(folder, Progress(3, 24), system.buckets, system.optimizer, to_dict(config), "", group)
    return (folder / step_name(3) / shard_name(here.rank)).stat().st_size


@pytest.mark.parametrize("layout", [{"tp": 2}, {"ep": 2}, {"pp": 2}])
def test_shards_have_the_sizes_that_are_told(world, tmp_path, layout):
    config = replace(SMALL, layout=LayoutConfig(**layout), optim=OptimConfig(min_dim_to_factor=16))
    sizes = world(2, shard_sizes, config, tmp_path)
    for rank, size in enumerate(sizes):
        facts = facts_of(play(config, 2, rank), "balanced")
        assert facts["checkpoint"] | {"all": 0} == {"file": shard_name(rank), "bytes": size, "all": 0}
        headers = sum(sizes) - facts["checkpoint"]["all"]
        assert 0 < headers < 0.2 * sum(sizes)


def test_products_of_one_process_have_their_closed_form():
    config = small(**BLOCKS, **dict.fromkeys(SPARSE, 0), num_experts=0)
    model, batch = config.model, config.train.global_batch
    flops = facts_of(play(config, 1, 0), "balanced")["flops"]
    tokens = batch * model.encoder_length, batch * model.decoder_length
    inner, layers = model.inner_dim, 2
    dense = 2 * 2 * model.d_model * model.d_ff * sum(tokens) * layers
    assert flops["dense"] == {"forward": dense, "backward": 2 * dense, "recompute": 0}
    head = 2 * model.vocab_size * model.d_model * tokens[1]
    assert flops["head"] == {"forward": 3 * head, "backward": 0, "recompute": 0}, "with the losses, block by block"
    enc, dec = model.encoder_length, model.decoder_length
    projections = 2 * model.d_model * inner * (4 * tokens[0] + 4 * tokens[1] + 2 * tokens[1] + 2 * tokens[0])
    cores = 2 * 2 * inner * batch * (enc * enc + dec * dec + dec * enc)
    assert flops["attention"]["forward"] == layers * (projections + cores)
    blocks = dense + layers * (projections + cores)
    logits_again = layers * cores // 2  # kernels keep no weights: one of the two products is computed again
    assert flops["total"] == {"forward": blocks + 3 * head, "backward": 2 * blocks + logits_again, "recompute": 0}


def test_what_recompute_computes_again():
    train = replace(SMALL.train, global_batch=2)
    plain, full = (
        facts_of(play(replace(SMALL, train=replace(train, recompute=kind)), 1, 0), "balanced")["flops"]
        for kind in ("none", "full")
    )
    for kind in plain:
        assert plain[kind]["recompute"] == 0
        assert [full[kind][p] for p in ("forward", "backward")] == [plain[kind][p] for p in ("forward", "backward")]
    assert full["head"]["recompute"] == 0
    for kind in ("attention", "dense", "experts", "router"):
        assert 0 < full[kind]["recompute"] <= full[kind]["forward"]


@pytest.mark.parametrize(("backend", "again"), [("cpp", False), ("triton", False), ("reference", True)])
def test_attention_is_computed_again_only_where_it_keeps_its_weights(backend, again):
    config = replace(SMALL, train=replace(SMALL.train, recompute="selective"), ops=OpsConfig(backend))
    flops = facts_of(play(config, 1, 0), "balanced")["flops"]
    assert flops["dense"]["recompute"] > 0 and flops["experts"]["recompute"] > 0
    assert (flops["attention"]["recompute"] > 0) == again


def test_worst_routing_takes_more_memory_on_a_rank():
    config = replace(SMALL, layout=LayoutConfig(ep=4), train=replace(SMALL.train, global_batch=8))
    even, worst = (look(config, 4, "2", routing)[0].facts for routing in ("balanced", "worst"))
    assert worst["memory"]["peak"] > even["memory"]["peak"]
    assert worst["flops"]["experts"]["forward"] > even["flops"]["experts"]["forward"]
    assert worst["flops"]["attention"] == even["flops"]["attention"]


def test_the_worst_rank_is_the_worst_of_all():
    config = replace(SMALL, layout=LayoutConfig(pp=2, tp=2), train=replace(SMALL.train, global_batch=4))
    seen = [one.facts for one in look(config, 4, "first,1,2,last,worst", "balanced")]
    worst, peaks = seen.pop(), [facts["memory"]["peak"] for facts in seen]
    assert [facts["rank"] for facts in seen] == [0, 1, 2, 3]
    assert worst["memory"]["peak"] == peaks[worst["rank"]]
    assert worst["memory"]["peak"] == max(peaks)


def test_one_rank_of_switch_c_on_2048():
    config = preset("switch_c_2048", layout=LayoutConfig(ep=2048), train={"recompute": "selective"})
    facts = look(config, 2048, "777", "balanced")[0].facts
    held, whole = facts["parameters"]["held"], facts["parameters"]["global"]
    assert whole["total"] == pytest.approx(PUBLISHED["switch_c_2048"].parameters, rel=1e-3)
    assert held["experts"] * 2048 == whole["experts"] and held["attn"] == whole["attn"]
    memory = facts["memory"]
    assert memory["weights"] == pytest.approx(2 * held["total"], rel=1e-3)
    assert memory["gradients"] == pytest.approx(4 * held["total"], rel=1e-3)
    assert max(memory[kind] for kind in memory["at_peak"]) < memory["peak"] == sum(memory["at_peak"].values()) < 30e9
    there_and_back = [one for one in facts["collectives"] if (one["axis"], one["op"]) == ("ep", "all_to_all")]
    assert len(there_and_back) == 1 and there_and_back[0]["count"] >= 5 * 30
    assert facts["tokens_per_expert"] == {"encoder": 512.0, "decoder": 114.0}
    assert len(facts["warnings"]) == 1 and "decoder" in facts["warnings"][0]
    assert facts["bubble"] == 0.0
    assert facts["checkpoint"]["all"] == pytest.approx(4 * whole["total"], rel=2e-3)
    assert not torch.distributed.is_initialized()


TABLE_9 = [
    ("switch_base_128", 64, {"ep": 64}),
    ("switch_large_128", 64, {"ep": 64}),
    ("switch_xxl_128", 512, {"ep": 128, "tp": 4}),
    ("switch_c_2048", 2048, {"ep": 2048}),
    ("switch_c_2048", 2048, {"ep": 256, "tp": 2, "pp": 4}),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "world", "layout"), TABLE_9)
@pytest.mark.parametrize("which", ["first", "last", "worst"])
def test_the_papers_models_run(name, world, layout, which):
    config = preset(name, layout=LayoutConfig(**layout), train={"recompute": "full"})
    facts = look(config, world, which, "worst")[0].facts
    assert facts["parameters"]["global"]["total"] == pytest.approx(PUBLISHED[name].parameters, rel=0.02)
    assert facts["memory"]["peak"] < 80e9


def test_a_played_step_compiles_nothing():
    config = replace(SMALL, train=replace(SMALL.train, compile="inductor"))
    played = play(config, 1, 0)
    assert played.system.ops.compiled == ()
    assert facts_of(played, "balanced") == facts_of(play(SMALL, 1, 0), "balanced")
