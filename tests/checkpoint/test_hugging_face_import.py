"""What can be imported, what the tensors decide, and what is refused without leaving anything behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.hugging_face import arrays, convert, far, folder
from safetensors.torch import load_file, save_file

import megaswitch
from megaswitch.checkpoint.hugging_face.importing import import_model
from megaswitch.checkpoint.hugging_face.names import TABLES
from megaswitch.checkpoint.hugging_face.stream import new_folder
from megaswitch.checkpoint.reader import Reader
from megaswitch.utils.errors import CannotWriteError, DataError, MissingInputError

Tensors = dict[str, torch.Tensor]


def edited(target: Path, name: str, config: dict[str, Any] | None = None, tensors: Any = None) -> Path:
    """A copy of a published folder with other keys in config.json (None: none) and tensors changed in place."""
    target.mkdir()
    told = json.loads((folder(name) / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    held = load_file(folder(name) / "model.safetensors")
    if tensors is not None:
        tensors(held)
    save_file({k: v.contiguous() for k, v in held.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def logits_agree(checkpoint: Path, name: str) -> bool:
    io = arrays(name, "io.npz")
    out = megaswitch.load(checkpoint)(io["input_ids"], io["decoder_input_ids"], io["attention_mask"])
    return far(io["logits"], out.logits) < 2e-6


def clone_head(held: Tensors) -> None:
    held["lm_head.weight"] = held["shared.weight"].clone()


def rename_table(held: Tensors) -> None:
    held["decoder.embed_tokens.weight"] = held.pop("shared.weight")


def copy_tables(held: Tensors) -> None:
    held.update({name: held["shared.weight"].clone() for name in TABLES})
    held["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 4)


@pytest.mark.parametrize(
    ("name", "config", "tensors"),
    [
        ("drop", {"tie_word_embeddings": False}, None),
        ("allsparse_untied", {"tie_word_embeddings": True}, None),
        ("t5_v10", {"tie_word_embeddings": False}, None),
        ("t5_v11", {"tie_word_embeddings": False}, None),
        ("drop", {"num_experts": 8, "num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 0}, None),
        ("drop", {"num_layers": 12, "d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "vocab_size": 9}, None),
        ("drop", {"architectures": ["SwitchTransformersForConditionalGeneration"], "eos_token_id": [1]}, None),
        ("drop", {}, clone_head),
        ("drop", {}, rename_table),
        ("t5_v10", {"architectures": ["T5WithLMHeadModel"], "scale_decoder_outputs": None}, copy_tables),
    ],
)
def test_the_tensors_are_right(tmp_path, name, config, tensors):
    import_model(edited(tmp_path / "hf", name, config, tensors), tmp_path / "c")
    import_model(folder(name), tmp_path / "plain")
    assert logits_agree(tmp_path / "c", name)
    assert Reader(tmp_path / "c").state == Reader(tmp_path / "plain").state


def test_disagreements_are_told(tmp_path, capsys):
    source = edited(tmp_path / "hf", "drop", {"num_experts": 8, "tie_word_embeddings": False})
    assert convert("import", source, tmp_path / "c") == 0
    said = capsys.readouterr()
    assert "config.json says num_experts = 8, the tensors say 4; the tensors are right" in said.err
    assert "tie_word_embeddings = False, the tensors say True" in said.err and said.err.count("note:") == 2
    assert said.out == f"{tmp_path / 'c'}: 136640 parameters in 93 tensors\n"


def test_what_config_alone_can_say(tmp_path):
    told = {"dropout_rate": 0.25, "router_jitter_noise": 0.125, "expert_capacity": 7}
    found = import_model(edited(tmp_path / "hf", "drop", told), tmp_path / "c").model
    assert (found.dropout, found.jitter, found.fixed_capacity) == (0.25, 0.125, 7)
    assert found.route_padding and found.group_sequences == 1 and found.router == "switch"
    left = {"dropout_rate": None, "router_jitter_noise": None, "expert_capacity": None}
    found = import_model(edited(tmp_path / "hf2", "drop", left), tmp_path / "c2").model
    assert (found.dropout, found.jitter, found.fixed_capacity) == (0.1, 0.01, 64), "transformers' defaults"
    endless = edited(tmp_path / "hf3", "drop", {"expert_capacity": 2**31 - 1})
    found = import_model(endless, tmp_path / "c3").model
    assert (found.capacity_factor, found.eval_capacity_factor, found.fixed_capacity) == (None, None, None)


def test_several_files(tmp_path):
    """As save_pretrained cuts large models."""
    source, held = tmp_path / "hf", load_file(folder("drop") / "model.safetensors")
    source.mkdir()
    shutil.copy(folder("drop") / "config.json", source)
    where = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(held)}
    for file in set(where.values()):
        save_file({n: held[n] for n in held if where[n] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    import_model(source, tmp_path / "c", most_file_bytes=50_000)
    import_model(folder("drop"), tmp_path / "plain")
    one, other = Reader(tmp_path / "plain"), Reader(tmp_path / "c")
    assert len(list((tmp_path / "c").glob("shard-*"))) > 5
    assert all(torch.equal(one.read_all(name), other.read_all(name)) for name in one.tensors)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"model-00002-of-00003.safetensors is not there"):
        import_model(source, tmp_path / "c2")


def test_types_stay_and_experts_of_two_types_get_the_wider(tmp_path):
    def narrow(held: Tensors) -> None:
        for name in held:
            held[name] = held[name].to(torch.float16 if "expert_1.wi" in name else torch.bfloat16)

    source = edited(tmp_path / "hf", "drop", tensors=narrow)
    import_model(source, tmp_path / "c")
    reader, held = Reader(tmp_path / "c"), load_file(source / "model.safetensors")
    dtypes = {name: info.dtype for name, info in reader.tensors.items()}
    mixed = [name for name, dtype in dtypes.items() if dtype == torch.float32]
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    assert len(mixed) == 4 and all(name.endswith("experts.wi") for name in mixed)
    found = reader.read_all("weight/encoder.blocks.1.switch.experts.wi")
    for expert in range(4):
        theirs = held[f"encoder.block.1.layer.1.mlp.experts.expert_{expert}.wi.weight"]
        assert torch.equal(found[expert], theirs.t().float())


def test_a_folder_of_switch_type_without_any_expert(tmp_path):
    """config.json may say so of a model all of whose layers are dense."""

    def dense(held: Tensors) -> None:
        for name in [n for n in held if ".mlp.experts.expert_0." in n]:
            held[name.replace(".experts.expert_0.", ".")] = held.pop(name)
        for name in [n for n in held if ".mlp.experts." in n or ".router." in n]:
            del held[name]

    model = import_model(edited(tmp_path / "hf", "drop", tensors=dense), tmp_path / "c").model
    assert model.num_experts == 0 and megaswitch.load(tmp_path / "c").config == model


# --- refusals


def without(*names: str) -> Any:
    return lambda held: [held.pop(name) for name in names]


def swapped_layers(held: Tensors) -> None:
    """Sparse layers 0 and 2 instead of 1 and 3 in the encoder."""
    for one, other in ((0, 1), (2, 3)):
        a = {n: held.pop(n) for n in list(held) if n.startswith(f"encoder.block.{one}.layer.1.mlp.")}
        b = {n: held.pop(n) for n in list(held) if n.startswith(f"encoder.block.{other}.layer.1.mlp.")}
        held.update({n.replace(f"block.{one}", f"block.{other}"): v for n, v in a.items()})
        held.update({n.replace(f"block.{other}", f"block.{one}"): v for n, v in b.items()})


def fewer_experts(held: Tensors) -> None:
    router = "decoder.block.1.layer.2.mlp.router.classifier.weight"
    held[router] = held[router][:2].clone()


ROUTER_BIAS = "encoder.block.1.layer.1.mlp.router.classifier.bias"


@pytest.mark.parametrize(
    ("name", "config", "tensors", "said"),
    [
        ("drop", {"model_type": "bert"}, None, "model_type is 'bert'; switch_transformers and t5 can be read"),
        ("drop", {"model_type": ["t5"]}, None, "model_type is"),
        ("t5_v10", {"architectures": ["T5EncoderModel"]}, None, "only T5ForConditionalGeneration has all weights"),
        ("t5_v10", {"architectures": 3}, None, "architectures is 3"),
        ("drop", {"layer_norm_epsilon": 1e-5}, None, "layer_norm_epsilon is 1e-05"),
        ("drop", {"relative_attention_max_distance": 64}, None, "relative_attention_max_distance is 64"),
        ("drop", {"router_bias": True}, None, "router_bias is True"),
        ("drop", {"router_dtype": "bfloat16", "pad_token_id": 3}, None, "pad_token_id is 3 .* router_dtype is"),
        ("drop", {"expert_capacity": 0}, None, "expert_capacity is 0"),
        ("drop", {"dropout_rate": "much"}, None, "dropout_rate is 'much'"),
        ("drop", {"dense_act_fn": "gelu"}, None, "dense_act_fn is 'gelu'"),
        ("t5_v11", {"feed_forward_proj": "gated-silu"}, None, "'gated-silu' .* with a gate"),
        ("t5_v11", {"dense_act_fn": "gelu"}, None, "dense_act_fn 'gelu' .* with a gate"),
        ("t5_v10", {"feed_forward_proj": "gated-gelu"}, None, "without a gate"),
        ("t5_v10", {"scale_decoder_outputs": False}, None, "scale_decoder_outputs is False but the output matrix is"),
        ("t5_v11", {"scale_decoder_outputs": True}, None, "scale_decoder_outputs is True but .* one of its own"),
        ("drop", {}, without("shared.weight"), "there is no input table"),
        ("drop", {}, without("decoder.final_layer_norm.weight"), "decoder.final_layer_norm.weight is missing"),
        (
            "drop",
            {},
            without("encoder.block.1.layer.1.mlp.experts.expert_2.wo.weight"),
            "expert_2.wo.weight is missing",
        ),
        ("drop", {}, lambda held: held.update({ROUTER_BIAS: torch.zeros(4)}), "no place for .*classifier.bias"),
        (
            "drop",
            {},
            lambda held: held.update({"encoder.block.7.layer.0.SelfAttention.q.weight": torch.zeros(32, 32)}),
            "layers of the encoder are not 0, 1, 2",
        ),
        (
            "drop",
            {},
            lambda held: held.update({"encoder.embed_tokens.weight": held["shared.weight"] * 2}),
            "shared.weight and encoder.embed_tokens.weight differ",
        ),
        ("drop", {}, lambda held: held.update({"shared.weight": torch.zeros(2, 3, 4)}), "of shape \\[2, 3, 4\\]"),
        (
            "drop",
            {},
            lambda held: held.update({"decoder.block.0.layer.0.SelfAttention.k.weight": torch.zeros(4, 32)}),
            "has shape \\[4, 32\\], not \\[32, 32\\]",
        ),
        ("drop", {}, swapped_layers, "sparse layers of the encoder are \\[0, 2\\] of 4"),
        ("drop", {}, fewer_experts, "layers differ in their number of experts"),
        (
            "drop",
            {},
            lambda held: held.update({"shared.weight": held["shared.weight"].to(torch.int8)}),
            "shared.weight is I8; weights of .* quantized ones cannot",
        ),
    ],
)
def test_what_cannot_be_imported(tmp_path, name, config, tensors, said):
    source = edited(tmp_path / "hf", name, config, tensors)
    with pytest.raises(DataError, match=said):
        import_model(source, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"], "nothing is left behind"


def test_pickles_are_refused_with_the_remedy(tmp_path, capsys):
    source = tmp_path / "hf"
    source.mkdir()
    shutil.copy(folder("drop") / "config.json", source)
    with pytest.raises(MissingInputError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        import_model(source, tmp_path / "c")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert convert("import", source, tmp_path / "c") == 65
    said = capsys.readouterr().err
    assert "pytorch_model.bin is not read" in said and "can run code" in said and "save_pretrained" in said


def test_files_that_are_not_what_they_should_be(tmp_path):
    with pytest.raises(MissingInputError, match="is no folder"):
        import_model(tmp_path / "nowhere", tmp_path / "c")
    source = edited(tmp_path / "hf", "drop")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(DataError, match="is no whole safetensors file"):
        import_model(source, tmp_path / "c")
    for text, said in (("{", "is not JSON"), ("[1]", "holds no object")):
        (source / "config.json").write_text(text)
        with pytest.raises(DataError, match=said):
            import_model(source, tmp_path / "c")
    (source / "config.json").unlink()
    with pytest.raises(MissingInputError, match=r"config.json is not there"):
        import_model(source, tmp_path / "c")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "is no name of a safetensors file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "is no name of a safetensors file beside it"),
        ({"weight_map": {"a": "model.safetensors"}}, "does not hold a, as"),
        ({"weight_map": []}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path, index, said):
    source = edited(tmp_path / "hf", "drop")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=said):
        import_model(source, tmp_path / "c")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("x")
    with pytest.raises(CannotWriteError, match="is there already"):
        import_model(folder("t5_v10"), tmp_path / "c")
    (tmp_path / "c" / "mine").unlink()
    import_model(folder("t5_v10"), tmp_path / "c")  # an empty folder is no obstacle
    assert convert("import", folder("t5_v10"), tmp_path / "c") == 73


@pytest.mark.parametrize(("trouble", "told"), [(KeyboardInterrupt(), None), (OSError(28, "No space left"), "No space")])
def test_what_is_interrupted_leaves_nothing(tmp_path, trouble, told):
    with pytest.raises(CannotWriteError if told else type(trouble), match=told), new_folder(tmp_path / "c") as aside:
        (aside / "half").write_text("x")
        assert aside.parent == tmp_path and not (tmp_path / "c").exists()
        raise trouble
    assert list(tmp_path.iterdir()) == []


def test_usage(capsys):
    assert convert("--help") == 0
    said = capsys.readouterr().out
    assert "example:\n  python tools/convert_hf.py import " in said and "--checkpoint.resume=CHECKPOINT" in said
    assert convert("import", "a") == 64 and convert("turn", "a", "b") == 64
    assert convert("import", "a", "b", "--expert-capacity=3") == 64
    assert convert("export", "a", "b", "--expert-capacity=0") == 64
    assert convert("import", "/nowhere/a", "b") == 66 and convert("export", "/nowhere/a", "b") == 66
