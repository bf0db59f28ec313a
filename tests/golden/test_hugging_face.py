"""The whole model against logits and gradients that Hugging Face computed with the same weights: imported by the tool,
exported by it again, and read by transformers where that is installed."""

import json

import numpy as np
import pytest
import torch
from golden.hugging_face import GRADIENTS, LOGITS, MODELS, SWITCH, arrays, convert, far, folder, ours
from torch.nn import functional as F

import megaswitch
from megaswitch.checkpoint.reader import Reader
from megaswitch.model.transformer import SwitchTransformer


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Checkpoints of the folders, by name."""
    root = tmp_path_factory.mktemp("imported")
    for name in MODELS:
        assert convert("import", folder(name), root / name) == 0
    return lambda name: root / name


def output(model: SwitchTransformer, name: str):
    io = arrays(name, "io.npz")
    return model(io["input_ids"], io["decoder_input_ids"], io["attention_mask"])


@pytest.mark.parametrize("name", MODELS)
def test_logits(imported, name):
    out, io = output(megaswitch.load(imported(name)), name), arrays(name, "io.npz")
    assert far(io["logits"], out.logits) < LOGITS
    if "aux_per_layer" in io:
        np.testing.assert_allclose(list(out.aux_losses.values()), io["aux_per_layer"], rtol=1e-5)


def check_gradients(model: SwitchTransformer, name: str, file: str) -> None:
    logits, labels = output(model, name).logits, arrays(name, "io.npz")["labels"]
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    wrong = {}
    for ours_name, expected in ours(arrays(name, file), model.config).items():
        found = model.params[ours_name].grad
        assert found is not None, ours_name
        wrong[ours_name] = far(expected, found) if expected.abs().max() > 0 else float(found.abs().max())
    assert max(wrong.values()) < GRADIENTS, {n: v for n, v in wrong.items() if v >= GRADIENTS}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_cross_entropy(imported, name):
    check_gradients(megaswitch.load(imported(name)), name, "grads_ce.npz")


@pytest.mark.parametrize("name", SWITCH)
def test_gradients_with_the_load_balancing_loss(imported, name):
    """Auxiliary losses attach in training only; without dropout and jitter nothing else changes."""
    model = megaswitch.load(imported(name)).train()
    assert model.config.aux_loss_coef == 0.01 and model.config.dropout == model.config.jitter == 0.0
    check_gradients(model, name, "grads_switch.npz")


@pytest.mark.parametrize("name", MODELS)
def test_float64_and_bfloat16(imported, name):
    wide = output(megaswitch.load(imported(name), dtype=torch.float64), name).logits
    assert wide.dtype == torch.float64 and far(arrays(name, "io.npz")["logits"].double(), wide) < LOGITS
    narrow = megaswitch.load(imported(name), None, "cpu", torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", MODELS)
def test_export_and_import_change_no_bit(imported, tmp_path, name):
    assert convert("export", imported(name), tmp_path / "hf") == 0
    assert convert("import", tmp_path / "hf", tmp_path / "again") == 0
    before, after = Reader(imported(name)), Reader(tmp_path / "again")
    assert before.state == after.state and before.tensors == after.tensors and len(before.tensors) > 40
    assert all(torch.equal(before.read_all(n), after.read_all(n)) for n in before.tensors)


def exported(imported, tmp_path, name):
    """The exported folder as transformers loads it, with nothing missing and nothing left over."""
    transformers = pytest.importorskip("transformers")
    assert convert("export", imported(name), tmp_path / "hf") == 0
    kind = "T5" if name.startswith("t5") else "SwitchTransformers"
    maker = getattr(transformers, f"{kind}ForConditionalGeneration")
    model, info = maker.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_was_exported(imported, tmp_path, name):
    model, io = exported(imported, tmp_path, name), arrays(name, "io.npz")
    with torch.no_grad():
        out = model(
            input_ids=io["input_ids"], attention_mask=io["attention_mask"], decoder_input_ids=io["decoder_input_ids"]
        )
    assert out.logits.dtype == torch.float32 and far(io["logits"], out.logits) < LOGITS
    told = json.loads((tmp_path / "hf" / "config.json").read_text())
    original = json.loads((folder(name) / "config.json").read_text())
    ours_to_say = {"transformers_version", "tie_word_embeddings", "router_aux_loss_coef", "router_z_loss_coef"}
    assert {k: v for k, v in told.items() if original.get(k, v) != v and k not in ours_to_say} == {}


@pytest.mark.parametrize("name", [n for n in MODELS if n != "drop"])  # ours drops nothing when it generates
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "length_penalty": 0.0}])
def test_transformers_writes_the_same_tokens(imported, tmp_path, name, options):
    """Greedy and with beams (which they end early unless told never to)."""
    theirs, io = exported(imported, tmp_path, name), arrays(name, "io.npz")
    early = {"early_stopping": "never"} if options else {}
    expected = theirs.generate(
        io["input_ids"], attention_mask=io["attention_mask"], max_new_tokens=9, do_sample=False, **options, **early
    )
    model = megaswitch.load(imported(name))
    assert torch.equal(model.generate(io["input_ids"], 9, io["attention_mask"], **options), expected[:, 1:])
