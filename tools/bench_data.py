"""Measures the data side, each thing beside its peer in one run: preprocessing, sample index, span corruption, loader.

    python tools/bench_data.py preprocess --input docs.jsonl --tokenizer docs.model --workers 2

Every subcommand is a module of `data_benches/` with `HELP`, `add_options(parser)` and `measure(options)`.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path


def main() -> int:
    """Runs one benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for path in sorted((Path(__file__).parent / "data_benches").glob("[a-z]*.py")):
        module = import_module(f"data_benches.{path.stem}")
        command = commands.add_parser(path.stem, help=module.HELP, description=module.HELP)
        module.add_options(command)
        command.set_defaults(measure=module.measure)
    options = parser.parse_args()
    options.measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
