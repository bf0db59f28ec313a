"""`megaswitch fill`: a checkpoint fills in the masked spans of a text."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from megaswitch.checkpoint.load import load
from megaswitch.data.spans import EOS
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.model.generate import Search, refuse_unusable
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.utils.arguments import Parser

_EXAMPLE = """Example: megaswitch fill --run runs/quickstart --tokenizer tok.model "The sum of <extra_id_0> numbers."
Spans to fill are written <extra_id_0>, <extra_id_1>, and so on."""
_HELP = {
    "num_beams": "continuations that beam search follows at once; 1: no beam search",
    "temperature": "0 writes what is likeliest; above 0 it is sampled, the more freely the higher",
    "top_k": "sample among so many of the likeliest tokens; 0: among all",
    "top_p": "sample among the likeliest tokens that together have this probability",
    "seed": "of sampling",
    "length_penalty": "above 0 beam search favours longer continuations",
}


def fill_in(model: SwitchTransformer, tokenizer: Tokenizer, text: str, max_tokens: int, **search: Any) -> str:
    """What the model writes for the spans of `text`, in the form of the training targets; `search` are options of
    `SwitchTransformer.generate`, greedy by default."""
    ids = [*tokenizer.encode_masked(text), EOS]
    encoder_ids_BS = torch.tensor([ids], device=next(model.parameters()).device)
    (written,) = model.generate(encoder_ids_BS, max_tokens, **search).tolist()
    return tokenizer.decode([i for i in written if i > EOS])


def _parser() -> Parser:
    parser = Parser("megaswitch fill", __doc__, _EXAMPLE)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder (its newest checkpoint), or one's")
    parser.add_argument("--tokenizer", required=True, help="the sentencepiece .model of the run's corpora")
    parser.add_argument("--max-tokens", type=int, default=64, help="most tokens written for a text")
    for option in fields(Search):
        name = "--" + option.name.replace("_", "-")
        parser.add_argument(name, type=type(option.default), default=option.default, help=_HELP[option.name])
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    args = _parser().parse_args(argv)
    search = {option.name: getattr(args, option.name) for option in fields(Search)}
    refuse_unusable(Search(**search), args.max_tokens)  # before anything is loaded
    model, tokenizer = load(args.run), Tokenizer(args.tokenizer)
    for text in args.texts:
        sys.stdout.write(f"{text}\n    {fill_in(model, tokenizer, text, args.max_tokens, **search)}\n")
    return 0
