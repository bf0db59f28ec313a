"""Measures the data side, each thing beside its peer in one run: preprocessing, sample index, span corruption, loader.

    python tools/bench_data.py preprocess --input docs.jsonl --tokenizer docs.model --workers 2

Every subcommand is a module of `data_benches/` with `HELP`, `add_options(parser)` and `measure(options)`.
"""

import sys
from importlib import import_module
from pathlib import Path

from megaswitch.data.prep.command import run
from megaswitch.utils.arguments import Program


def main() -> int:
    """Runs one benchmark; returns its exit code."""
    parser = Program(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for path in sorted((Path(__file__).parent / "data_benches").glob("[a-z]*.py")):
        module = import_module(f"data_benches.{path.stem}")
        command = commands.add_parser(path.stem, help=module.HELP, description=module.HELP)
        module.add_options(command)
        command.set_defaults(measure=module.measure)
    options = parser.parse_args()
    return run(lambda: options.measure(options))


if __name__ == "__main__":
    sys.exit(main())
