"""`megaswitch fill`: a checkpoint fills in the masked spans of a text."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from megaswitch.checkpoint.choose import choose
from megaswitch.checkpoint.load import load
from megaswitch.data.spans import EOS
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.utils.errors import MissingInputError

_EXAMPLE = """Example: megaswitch fill --run runs/quickstart --tokenizer tok.model "The sum of <extra_id_0> numbers."
Spans to fill are written <extra_id_0>, <extra_id_1>, and so on."""


def fill_in(model: SwitchTransformer, tokenizer: Tokenizer, text: str, max_tokens: int) -> str:
    """What the model writes for the spans of `text`, in the form of the training targets (greedy)."""
    ids = [*tokenizer.encode_masked(text), EOS]
    encoder_ids_BS = torch.tensor([ids], device=next(model.parameters()).device)
    (written,) = model.generate(encoder_ids_BS, max_tokens).tolist()
    return tokenizer.decode([i for i in written if i > EOS])


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        "megaswitch fill", description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder; its newest checkpoint is used")
    parser.add_argument("--tokenizer", required=True, help="the sentencepiece .model of the run's corpora")
    parser.add_argument("--max-tokens", type=int, default=64, help="most tokens written for a text")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    args = parser.parse_args(argv)
    path = choose(args.run / "checkpoints", "auto")
    if path is None:
        raise MissingInputError(f"no checkpoint is below {args.run / 'checkpoints'}; train first")
    model, tokenizer = load(path), Tokenizer(args.tokenizer)
    for text in args.texts:
        sys.stdout.write(f"{text}\n    {fill_in(model, tokenizer, text, args.max_tokens)}\n")
    return 0
