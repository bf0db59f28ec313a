"""Converts models of Hugging Face, SwitchTransformers and T5 (v1.0, v1.1), from and to checkpoints.

`import HF_DIR CHECKPOINT` reads config.json and safetensors and writes the folder CHECKPOINT: a checkpoint of
weights alone at step 0. `megaswitch.load` loads it, and a run begins from it with --checkpoint.resume=CHECKPOINT,
or finds it by itself when CHECKPOINT is RUN/checkpoints/step-00000000.

`export CHECKPOINT HF_DIR` writes a folder that transformers loads; CHECKPOINT may be a run's folder, of which the
newest checkpoint that verifies is taken. Memory stays at about the largest tensor (of experts, the largest one).
"""

import argparse
import sys
from pathlib import Path

from megaswitch.data.prep.command import Parser, run, say

ALL = "all"


def slots(text: str) -> int:
    """An argparse type: a number of slots, or "all"."""
    from megaswitch.checkpoint.hugging_face.recognise import NO_LIMIT  # here: help must not wait for torch

    number = NO_LIMIT if text == ALL else int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, or {ALL}, got {number}")
    return number


def import_folder(source: Path, target: Path) -> None:
    """Writes a checkpoint and tells what it holds."""
    from megaswitch.checkpoint.hugging_face.importing import import_model

    found = import_model(source, target)
    for note in found.notes:
        say(f"note: {note}")
    print(f"{target}: {found.parameters} parameters in {found.tensors} tensors")


def export_folder(source: Path, target: Path, expert_capacity: int | None) -> None:
    """Writes a folder for transformers and tells what it holds."""
    from megaswitch.checkpoint.hugging_face.exporting import export_model

    written = export_model(source, target, expert_capacity)
    for note in written.notes:
        say(f"note: {note}")
    print(f"{target}: {written.files} safetensors file{'s' if written.files > 1 else ''} and config.json")


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(__doc__ or "", "python tools/convert_hf.py import downloads/switch-base-8 imported/switch-base-8")
    parser.add_argument("direction", choices=("import", "export"))
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder to read: HF_DIR, or a checkpoint or run")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write, which must not be there yet")
    parser.add_argument(
        "--expert-capacity",
        type=slots,
        metavar="N",
        help=f"export: slots an expert has for a sequence, or {ALL} to drop nothing; default is the model's own rule",
    )
    args = parser.parse_args()
    if args.direction == "import" and args.expert_capacity is not None:
        parser.error("--expert-capacity is for export; import takes it from config.json")

    def work() -> None:
        if args.direction == "import":
            import_folder(args.source, args.target)
        else:
            export_folder(args.source, args.target, args.expert_capacity)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
