"""Measures training beside its peers: the whole step, a Switch layer, single operations; where time and memory go.

    python tools/bench.py step --experts 8 --threads 1 --dtype float32

Each command prints a table and, as its last line, one JSON object. transformers' step is measured in a process of its
own, its layer in ours; DeepSpeed and Tutel want an environment of their own, which --install-peers makes.
"""

import sys
from importlib import import_module

from benches.command_line import parse
from benches.machine import pin

from megaswitch.data.prep.command import run


def main() -> int:
    """Runs one benchmark; returns its exit code."""
    options = parse(sys.argv[1:], __doc__ or "")
    if options.command is None:
        return run(lambda: import_module("benches.peers").install(options.peers_dir))
    pin(options.threads, options.processes, patient=options.quick)  # before torch is there
    return run(lambda: import_module(f"benches.{options.command}").measure(options))


if __name__ == "__main__":
    sys.exit(main())
