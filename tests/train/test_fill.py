"""`megaswitch fill`: it writes what the loaded model generates, and refuses wrong options before it loads anything."""

from dataclasses import replace

import pytest
import torch

import megaswitch
from megaswitch.checkpoint.format import Piece
from megaswitch.checkpoint.store import save
from megaswitch.checkpoint.training import weights_only_state
from megaswitch.config.documents import to_dict
from megaswitch.data.prep.train_tokenizer import main as train_tokenizer
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.params.boxes import Box
from megaswitch.train.fill import main
from megaswitch.utils.errors import UserError

WORDS = "router expert token gate capacity layer model group loss sum".split()  # noqa: SIM905
DENSE = ModelConfig(d_model=16, d_ff=24, d_kv=4, num_heads=4, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [" ".join(WORDS[(i * k) % 10] for k in range(1, 9)) for i in range(1, 200)]
    (folder / "text.txt").write_text("\n".join(lines))
    assert train_tokenizer(["--input", str(folder / "text.txt"), "--vocab-size", "32", "--output", f"{folder}/v"]) == 0
    return f"{folder}/v.model"


@pytest.fixture
def run(tmp_path, vocabulary):
    """A run's folder with one checkpoint of random weights."""
    model = replace(DENSE, vocab_size=Tokenizer(vocabulary).vocab_size)
    generator = torch.Generator().manual_seed(0)
    pieces = [
        Piece(f"weight/{n}", s.shape, Box((0,) * len(s.shape), s.shape), torch.randn(s.shape, generator=generator))
        for n, s in param_specs(model).items()
    ]
    save(tmp_path / "run" / "checkpoints", 0, pieces, weights_only_state({"model": to_dict(model)}), None)
    return tmp_path / "run"


OPTIONS = [
    ([], {}),
    (["--num-beams=3", "--length-penalty=0.5"], {"num_beams": 3, "length_penalty": 0.5}),
    (["--temperature=0.9", "--seed=4"], {"temperature": 0.9, "seed": 4}),
    (["--temperature=2", "--top-k=9", "--top-p=0.9"], {"temperature": 2.0, "top_k": 9, "top_p": 0.9}),
]


@pytest.mark.parametrize(("arguments", "search"), OPTIONS)
def test_it_writes_what_the_model_generates(run, vocabulary, capsys, arguments, search):
    texts = ["router <extra_id_0> token", "the sum of <extra_id_0> and <extra_id_1>"]
    assert main(["--run", str(run), "--tokenizer", vocabulary, "--max-tokens", "7", *arguments, *texts]) == 0
    model, tokenizer, expected = megaswitch.load(run), Tokenizer(vocabulary), ""
    for text in texts:
        ids = torch.tensor([[*tokenizer.encode_masked(text), 1]])
        written = model.generate(ids, 7, **search)[0].tolist()
        expected += f"{text}\n    {tokenizer.decode([i for i in written if i > 1])}\n"
    assert capsys.readouterr().out == expected


def test_the_options_make_a_difference(run, vocabulary, capsys):
    said = set()
    for arguments, _ in OPTIONS:
        main(["--run", str(run), "--tokenizer", vocabulary, *arguments, "router <extra_id_0> token"])
        said.add(capsys.readouterr().out)
    assert len(said) == len(OPTIONS)


def test_wrong_options_are_refused_first(tmp_path):
    with pytest.raises(UserError, match="top_k and top_p are of sampling"):
        main(["--run", str(tmp_path / "nowhere"), "--tokenizer", "none.model", "--top-k=3", "text"])


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("--num-beams", "--temperature", "--top-p", "--length-penalty", "<extra_id_0>"))
