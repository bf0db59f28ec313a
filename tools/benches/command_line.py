"""The command line of `tools/bench.py`, which is read before torch is imported: threads are pinned in between."""

import argparse
from collections.abc import Callable, Sequence

from megaswitch.data.prep.command import positive
from megaswitch.utils.arguments import Program

Options = argparse.Namespace
_PROGRAM = "python tools/bench.py"


def parse(arguments: Sequence[str], about: str) -> Options:
    """The options of one benchmark; `command` is None for --install-peers."""
    parser = Program(prog=_PROGRAM, description=about)
    parser.add_argument("--install-peers", action="store_true", help="install DeepSpeed and Tutel into --peers-dir")
    _peers_dir(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, example, add) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {_PROGRAM} {name} {example}",
        )
        add(command)
        _common(command)
    options = parser.parse_args(arguments)
    if (options.command is None) != options.install_peers:
        parser.error("say what is to be measured, or --install-peers alone")
    procs = getattr(options, "procs", 1)
    options.processes = max(procs) if isinstance(procs, list) else procs
    return options


def _peers_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers-dir", default=".peers", metavar="DIR", help="the peers' environment (default: .peers)")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="threads, and processors (default: 1)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=positive, default=5, metavar="R", help="rounds; in each all take turns")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it works, and measures nothing")
    parser.add_argument("--out", metavar="DIR", help="also draw plots (SVG) there")
    _peers_dir(parser)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--d-model", type=positive, default=256, metavar="N", help="width; d_ff is four times that")
    parser.add_argument("--layers", type=positive, default=4, metavar="N", help="blocks a stack, every second sparse")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="sequences of 512 and 114 tokens")
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="of them in one pass (default: all)")
    parser.add_argument("--optimizer", choices=["adamw", "adafactor"], default="adamw")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="P")
    parser.add_argument(
        "--key", action="append", default=[], metavar="K=V", help="any key of the configuration: --key ops.backend=cpp"
    )


def _step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experts", type=positive, nargs="+", default=[8], metavar="E")
    peers = "Hugging Face's Switch with the same weights, its T5 of equal FLOPs, or our own T5 of equal FLOPs"
    parser.add_argument("--peer", choices=["hf-switch", "hf-t5", "own-t5"], default="hf-switch", help=peers)
    precision = "of Hugging Face in --dtype bfloat16: float32 weights under autocast (default), or all bfloat16"
    parser.add_argument("--peer-precision", choices=["autocast", "bfloat16"], help=precision)
    keeps = "Hugging Face's process keeps freed memory too, as our training has it and its users do not"
    parser.add_argument("--peer-keeps-memory", action="store_true", help=keeps)
    _model(parser)


def _layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experts", type=positive, nargs="+", default=[8, 32, 64, 128], metavar="E")
    parser.add_argument("--tokens", type=positive, default=4096, metavar="N")
    parser.add_argument("--d-model", type=positive, default=512, metavar="N", help="width; d_ff is four times that")
    parser.add_argument("--procs", type=positive, default=1, metavar="N", help="processes of one thread (default: 1)")


def _ops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="NAME", help="operations (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")


def _scaling(parser: argparse.ArgumentParser) -> None:
    kinds = ["tp", "pp", "ep", "dp", "experts", "length", "layers"]
    parser.add_argument("--only", nargs="+", choices=kinds, metavar="KIND", help=f"of {', '.join(kinds)}")
    parser.add_argument("--procs", type=positive, nargs="+", default=[2, 4], metavar="N", help="of one thread each")
    parser.add_argument("--experts", type=positive, default=8, metavar="E")
    _model(parser)


def _profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experts", type=positive, default=8, metavar="E")
    _model(parser)


_COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "step": ("the whole training step (forward, backward, optimizer), tokens/s", "--experts 8 64 --threads 1", _step),
    "layer": ("one MoE layer, forward and backward, ms", "--experts 8 64 --peers-dir .peers", _layer),
    "ops": ("each operation beside the best library's, ms", "--only rms_norm attention --dtype bfloat16", _ops),
    "scaling": ("several processes beside one, and growth with the model, s", "--only tp ep --procs 2", _scaling),
    "memory": ("the peak of a step beside what the dry run foretells, MiB", "--experts 8 --d-model 512", _profile),
    "profile": ("where the time of a step goes, beside what the machine allows", "--dtype bfloat16", _profile),
}
