"""What can be exported, held to transformers; what is refused; and what imported weights are good for in a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.hugging_face import arrays, convert, far, folder
from safetensors import safe_open
from train.corpus import here, tiny_run, write_corpus

import megaswitch
from megaswitch.checkpoint.format import Piece
from megaswitch.checkpoint.hugging_face.exporting import export_model
from megaswitch.checkpoint.hugging_face.importing import import_model
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.store import save
from megaswitch.checkpoint.training import Progress, weights_only_state
from megaswitch.config.documents import to_dict
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.optim.optimizer import master_state
from megaswitch.params.boxes import Box
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.loop import train
from megaswitch.train.resume import resume
from megaswitch.train.system import build
from megaswitch.utils.errors import CannotWriteError, DataError, MissingInputError, UserError

SWITCH = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=24,
    d_kv=6,
    num_heads=4,
    num_encoder_layers=4,
    num_decoder_layers=4,
    num_experts=4,
    num_sparse_encoder_layers=2,
    num_sparse_decoder_layers=2,
    encoder_length=10,
    decoder_length=7,
    capacity_factor=None,
    eval_capacity_factor=None,
)
DENSE = replace(SWITCH, num_experts=0, num_sparse_encoder_layers=0, num_sparse_decoder_layers=0)
FIXED = replace(SWITCH, fixed_capacity=2, route_padding=True)


def checkpoint(root: Path, model: ModelConfig) -> Path:
    """A checkpoint of random weights."""
    generator = torch.Generator().manual_seed(3)
    pieces = []
    for name, spec in param_specs(model).items():
        tensor = torch.randn(spec.shape, generator=generator) * 0.3
        pieces.append(Piece(f"weight/{name}", spec.shape, Box((0,) * len(spec.shape), spec.shape), tensor))
    return save(root, 0, pieces, weights_only_state({"model": to_dict(model)}), None)


MODELS = {
    "switch": SWITCH,
    "switch_untied": replace(SWITCH, tied_embeddings=False),
    "fixed": FIXED,
    "a factor that holds all": replace(SWITCH, eval_capacity_factor=4.0, capacity_factor=1.0),
    "every layer": replace(SWITCH, num_sparse_encoder_layers=4, num_sparse_decoder_layers=4),
    "encoder alone": replace(SWITCH, num_sparse_decoder_layers=0),
    "decoder alone": replace(SWITCH, num_sparse_encoder_layers=0),
    "odd numbers": replace(SWITCH, num_encoder_layers=5, num_decoder_layers=3, num_sparse_decoder_layers=3),
    "one layer each": replace(
        SWITCH, num_encoder_layers=1, num_decoder_layers=1, num_sparse_encoder_layers=1, num_sparse_decoder_layers=0
    ),
    "two of one": replace(SWITCH, num_decoder_layers=2, num_sparse_decoder_layers=1),
    "dense": DENSE,
    "dense_untied": replace(DENSE, tied_embeddings=False, num_decoder_layers=2),
    "gated": replace(DENSE, activation="geglu", tied_embeddings=False),
    "gated_tied": replace(DENSE, activation="geglu"),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_logits(tmp_path, name):
    transformers, model = pytest.importorskip("transformers"), MODELS[name]
    export_model(checkpoint(tmp_path / "c", model), tmp_path / "hf")
    found, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    generator = torch.Generator().manual_seed(4)
    encoder_ids = torch.randint(2, 96, (3, 10), generator=generator)
    encoder_ids[1, 7:] = 0
    decoder_ids = torch.randint(2, 96, (3, 7), generator=generator)
    ours = megaswitch.load(tmp_path / "c")(encoder_ids, decoder_ids).logits
    with torch.no_grad():
        mask = (encoder_ids != 0).long()
        theirs = found.eval()(input_ids=encoder_ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    assert far(theirs, ours) < 2e-6
    if name == "fixed":
        dropless = replace(model, fixed_capacity=None)
        other = megaswitch.load(checkpoint(tmp_path / "d", dropless))(encoder_ids, decoder_ids).logits
        assert far(theirs, other) > 1e-3, "the example drops nothing"


@pytest.mark.parametrize("name", MODELS)
def test_the_way_back(tmp_path, name):
    """All that shapes a pass comes back, and every bit of the weights."""
    source = checkpoint(tmp_path / "c", MODELS[name])
    export_model(source, tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "again")
    one, other = Reader(source), Reader(tmp_path / "again")
    assert one.tensors == other.tensors
    assert all(torch.equal(one.read_all(n), other.read_all(n)) for n in one.tensors)
    export_model(tmp_path / "again", tmp_path / "hf2")
    first, second = (json.loads((tmp_path / hf / "config.json").read_text()) for hf in ("hf", "hf2"))
    assert first == second


def test_several_files_with_an_index(tmp_path):
    source = checkpoint(tmp_path / "c", SWITCH)
    written = export_model(source, tmp_path / "hf", most_file_bytes=20_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) == written.files > 3 and files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(tmp_path / "hf" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {n for n, f in index["weight_map"].items() if f == file}
    assert index["metadata"]["total_size"] == sum(4 * s.size for s in param_specs(SWITCH).values())
    import_model(tmp_path / "hf", tmp_path / "again")
    one, other = Reader(source), Reader(tmp_path / "again")
    assert all(torch.equal(one.read_all(n), other.read_all(n)) for n in one.tensors)


# --- refusals


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (replace(SWITCH, activation="geglu"), "model.activation: geglu experts do not exist there"),
        (replace(SWITCH, num_encoder_layers=8), r"encoder's sparse layers \[3, 7\] of 8 cannot be placed"),
        (replace(SWITCH, num_decoder_layers=3), r"decoder's sparse layers \[0, 1\] of 3 cannot be placed"),
        (replace(SWITCH, num_decoder_layers=6), r"decoder's sparse layers \[2, 5\] of 6 cannot be placed"),
        (replace(SWITCH, router="top2"), "model.router: 'top2' has no counterpart"),
        (replace(SWITCH, router_priority="probability"), "model.router_priority: 'probability' has no"),
        (replace(SWITCH, router_dtype="compute"), "model.router_dtype: 'compute' has no counterpart"),
        (replace(SWITCH, eval_capacity_factor=2.0), "model.eval_capacity_factor: slots by a factor of 2"),
        (replace(FIXED, group_sequences=2), "model.group_sequences: groups of several sequences"),
        (replace(FIXED, decoder_group_sequences=2), "model.group_sequences: groups of several sequences"),
        (replace(FIXED, route_padding=False), "model.route_padding: there padding is always routed"),
    ],
)
def test_what_cannot_be_exported(tmp_path, model, said):
    source = checkpoint(tmp_path / "c", model)
    with pytest.raises(UserError, match=f"transformers cannot express this model:\n  - .*{said}"):
        export_model(source, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_all_reasons_are_told_at_once_and_some_have_a_remedy(tmp_path, capsys):
    wrong = replace(SWITCH, router="top2", num_encoder_layers=8, eval_capacity_factor=2.0)
    assert convert("export", checkpoint(tmp_path / "c", wrong), tmp_path / "hf") == 64
    said = capsys.readouterr().err
    assert all(key in said for key in ("model.router:", "num_sparse_encoder_layers:", "--expert-capacity=N"))
    factor = checkpoint(tmp_path / "d", replace(SWITCH, eval_capacity_factor=2.0, expert_dropout=0.4))
    for given, written in (("5", 5), ("all", 2**31 - 1)):
        assert convert("export", factor, tmp_path / given, f"--expert-capacity={given}") == 0
        assert json.loads((tmp_path / given / "config.json").read_text())["expert_capacity"] == written
        said = capsys.readouterr()
        assert "where it drops tokens, logits will differ" in said.err and "expert_dropout has no" in said.err
        assert said.out == f"{tmp_path / given}: 1 safetensors file and config.json\n"


def test_experts_in_attention_are_refused(tmp_path):
    wrong = replace(SWITCH, expert_attention=not ModelConfig().expert_attention)
    with pytest.raises(UserError, match=r"model\.expert_attention: .* has no counterpart in transformers"):
        export_model(checkpoint(tmp_path / "c", wrong), tmp_path / "hf")


def test_damage_and_what_is_there_already(tmp_path):
    source = checkpoint(tmp_path / "c", DENSE)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(CannotWriteError, match="is there already"):
        export_model(source, tmp_path / "hf")
    shard = source / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="its bytes are damaged"):
        export_model(source, tmp_path / "other")
    other = save(tmp_path / "d", 0, [], weights_only_state({"model": to_dict(DENSE)}), None)
    with pytest.raises(DataError, match="weight/embedding is missing"):
        export_model(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- megaswitch.load


def test_load_finds_the_newest_that_verifies(tmp_path):
    run = tmp_path / "run"
    for step in (2, 10):
        model = replace(DENSE, dropout=step / 100)
        made = checkpoint(tmp_path / str(step), model)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        made.rename(run / "checkpoints" / f"step-{step:08d}")
    for path in (run, str(run), run / "checkpoints", run / "checkpoints" / "step-00000010"):
        assert megaswitch.load(path).config.dropout == 0.1
    shard = run / "checkpoints" / "step-00000010" / "shard-00000.safetensors"
    shard.write_bytes(b"x" * shard.stat().st_size)
    assert megaswitch.load(run).config.dropout == 0.02
    with pytest.raises(DataError, match="its bytes are damaged"):
        megaswitch.load(run / "checkpoints" / "step-00000010")
    (run / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"none of the 2 checkpoints below"):
        megaswitch.load(run)
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingInputError, match="is no checkpoint, and none is below it"):
            megaswitch.load(path)


def test_keys_younger_than_a_checkpoint_have_their_defaults(tmp_path):
    told = to_dict(replace(DENSE, dropout=0.5))
    for key in ("router", "fixed_capacity", "expert_attention"):
        del told[key]
    whole = Reader(checkpoint(tmp_path / "c", DENSE))
    pieces = [
        Piece(name, info.shape, Box((0,) * len(info.shape), info.shape), whole.read_all(name))
        for name, info in whole.tensors.items()
    ]
    older = save(tmp_path / "d", 0, pieces, weights_only_state({"model": told}), None)
    assert megaswitch.load(older).config == replace(DENSE, dropout=0.5)


def test_load_is_for_one_process(tmp_path):
    source = checkpoint(tmp_path / "c", DENSE)
    model = megaswitch.load(source, LayoutConfig(), "cpu", torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64} and not model.training
    for layout in (LayoutConfig(tp=2), LayoutConfig(pp=2), LayoutConfig(ep=2)):
        with pytest.raises(UserError, match=r"one process, .* leave out the layout"):
            megaswitch.load(source, layout)
    with pytest.raises(DataError, match="does not say which model it holds"):
        megaswitch.load(save(tmp_path / "d", 0, [], {}, None))


# --- runs that begin with imported weights


def trained(tmp_path: Path, world: Any) -> tuple[Any, Path]:
    """A run of three steps and its weights by way of Hugging Face, in float64."""
    config = tiny_run(tmp_path / "first", write_corpus(tmp_path / "corpus"))
    config = replace(config, train=replace(config.train, stop_after=3))
    assert world(1, lambda: train(config, here())) == [0]
    assert convert("export", tmp_path / "first", tmp_path / "hf", "--expert-capacity=all") == 0
    assert convert("import", tmp_path / "hf", tmp_path / "imported") == 0
    return config, tmp_path / "imported"


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_begins_with_imported_weights(tmp_path, world):
    config, imported = trained(tmp_path, world)
    expected = Reader(tmp_path / "first" / "checkpoints" / "step-00000003")

    def begin() -> tuple[Progress, bool]:
        system = build(config, here(), initialise=False)
        progress = resume(system, Reader(imported), "any data")
        masters = {t.name: torch.equal(t.view, expected.read(t.name, t.box)) for t in master_state(system.buckets)}
        assert masters and all(masters.values()), masters
        fresh = build(config, here())
        ours, unused = list(system.optimizer.state()), list(fresh.optimizer.state())
        assert len(ours) == len(unused) > 0
        return progress, all(torch.equal(a.view, b.view) for a, b in zip(ours, unused, strict=True))

    assert world(1, begin) == [(Progress(0, 0), True)]
    named = replace(config, run=replace(config.run, dir=str(tmp_path / "second")))
    named = replace(named, checkpoint=replace(named.checkpoint, resume=str(imported)))
    assert world(1, lambda: train(named, here())) == [0]
    found = replace(config, run=replace(config.run, dir=str(tmp_path / "third")), layout=LayoutConfig(pp=2))
    assert convert("import", tmp_path / "hf", tmp_path / "third" / "checkpoints" / "step-00000000") == 0
    assert world(2, lambda: train(found, here())) == [0, 0]
    for one, other in zip(metrics(tmp_path / "second"), metrics(tmp_path / "third"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    lines = metrics(tmp_path / "second")
    assert [(line["step"], line["samples"]) for line in lines] == [(1, 4), (2, 8), (3, 12)]
    assert lines[0]["loss"] != metrics(tmp_path / "first")[0]["loss"]


def test_imported_weights_of_another_model(tmp_path, world):
    config, imported = trained(tmp_path, world)
    for field, value in (("num_experts", 8), ("d_ff", 48), ("tied_embeddings", False), ("activation", "geglu")):
        other = replace(config, model=replace(config.model, **{field: value}))

        def begin(other=other) -> str:
            with pytest.raises(DataError) as told:
                resume(build(other, here()), Reader(imported), "any data")
            return str(told.value)

        assert f"model.{field}: " in world(1, begin)[0]


def test_gradients_reach_imported_weights(tmp_path):
    """Fine-tuning in a few lines: the loaded model is an ordinary module."""
    import_model(folder("drop"), tmp_path / "c")
    model, io = megaswitch.load(tmp_path / "c").train(), arrays("drop", "io.npz")
    before = megaswitch.load(tmp_path / "c").state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(io["input_ids"], io["decoder_input_ids"], io["attention_mask"]).logits.square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
