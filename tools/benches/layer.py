"""One MoE layer, forward and backward, beside Hugging Face's, DeepSpeed's and Tutel's, and a dense one of equal FLOPs.

Every expert gets exactly its share of the tokens, so that capacity drops nothing and pads nothing, and all do the same
products. The first output of each is compared with ours.

B sequences, L tokens of a sequence, D d_model, F d_ff, E experts.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benches import hugging_face, peers
from benches.command_line import Options
from benches.crew import crew
from benches.layer_ours import dense_round, switch_round
from benches.models import ALONE, DTYPES
from benches.rates import measure_rates
from benches.report import Row, finish, show, significant
from benches.timing import Contender, Figure, clocked, in_turns, ratio
from megaswitch.data.prep.command import say
from megaswitch.topology.start import Place

OURS, DENSE = "ours", "dense of equal FLOPs"
_FAR = {"float32": 1e-3, "bfloat16": 3e-2}
_SEQUENCES = 8


@dataclass(frozen=True)
class Shape:
    """Sequences, tokens of each, widths."""

    B: int
    L: int
    D: int
    F: int

    @property
    def flops(self) -> float:
        """Of forward and backward."""
        return 3 * 4.0 * self.B * self.L * self.D * self.F


def measure(options: Options) -> None:
    """Prints milliseconds by implementation and number of experts."""
    width = 64 if options.quick else options.d_model
    shape = Shape(_SEQUENCES, 16 if options.quick else options.tokens // _SEQUENCES, width, 4 * width)
    repeats = 2 if options.quick else options.repeats
    others = peers.available(options.peers_dir)
    if not others:
        say("DeepSpeed and Tutel are not there (tools/bench.py --install-peers): they are left out")
    rows, tables = [], []
    for experts in [4] if options.quick else options.experts:
        seconds = _measure(options, shape, experts, repeats, others)
        tables.append(seconds)
        rows.append(_row(experts, seconds))
    rate = measure_rates(DTYPES[options.dtype], options.threads, quick=options.quick).flops  # threads, so after forks
    rate *= options.procs
    _tell(rows, tables, shape, rate)
    if options.out:
        _draw(options, tables)
    finish(options, rows, flops=rate, peers=others)


def make_case(shape: Shape, experts: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """x and grad [B, L, D], router [D, E], wi [E, D, F], wo [E, F, D]; token t wants the expert that its first E
    features name, in an order that is shuffled in each sequence."""
    generator = torch.Generator().manual_seed(experts)
    B, L, D, F = shape.B, shape.L, shape.D, shape.F

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    wanted_BL = torch.stack([torch.randperm(L, generator=generator) % experts for _ in range(B)])
    x_BLD = 0.1 * normal(B, L, D)
    x_BLD[..., :experts] += 8.0 * torch.nn.functional.one_hot(wanted_BL, experts)
    made = {"x": x_BLD, "grad": normal(B, L, D), "wi": normal(experts, D, F) * D**-0.5}
    made |= {"wo": normal(experts, F, D) * F**-0.5, "router": torch.eye(D, experts)}
    return {name: tensor.to(torch.float32 if name == "router" else dtype) for name, tensor in made.items()}


def _measure(
    options: Options, shape: Shape, experts: int, repeats: int, others: list[str]
) -> dict[str, Figure]:
    case = make_case(shape, experts, DTYPES[options.dtype])
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layer-"))) / "case.safetensors"
        contenders: dict[str, Contender] = {}
        contenders[OURS] = _ours(stack, options, case)
        if options.procs == 1:
            norm = switch_round(case, ALONE, options.dtype)().norm().item()
            contenders[DENSE] = clocked(dense_round(case, options.dtype))
            theirs = hugging_face.layer_round(case)
            _compare("Hugging Face", theirs().double().norm().item(), norm, options.dtype)
            contenders["Hugging Face"] = clocked(theirs)
        else:
            norm = None
        save_file(case, path)
        for name in others:
            try:
                members = stack.enter_context(peers.started(options.peers_dir, name, path, options.procs))
            except peers.PeerFailed as trouble:
                say(str(trouble))
                continue
            if norm is not None:
                _compare(peers.NAMES[name], members.norm, norm, options.dtype)
            contenders[peers.NAMES[name]] = members.once
        return in_turns(contenders, repeats, max(options.threads, options.procs))


def _ours(stack: ExitStack, options: Options, case: dict[str, Tensor]) -> Contender:
    if options.procs == 1:
        return clocked(switch_round(case, ALONE, options.dtype))

    def make(place: Place):  # type: ignore[no-untyped-def]
        once = switch_round(case, place, options.dtype)
        return lambda: (once(), None)[1]

    return stack.enter_context(crew(options.procs, make)).once


def _compare(name: str, norm: float, ours: float, dtype: str) -> None:
    assert abs(norm - ours) < _FAR[dtype] * ours, f"the first output of {name} has a norm of {norm}, ours of {ours}"


def _row(experts: int, seconds: dict[str, Figure]) -> Row:
    """Beside the fastest peer with experts."""
    mine = seconds[OURS]
    others = {name: figure for name, figure in seconds.items() if name not in (OURS, DENSE)}
    more = {"all": {name: figure.times(1e3, "ms").json() for name, figure in seconds.items()}, "experts": experts}
    ours = mine.times(1e3, "ms")
    if not others:
        return Row(f"{experts} experts", ours, more=more)
    name = min(others, key=lambda n: others[n].median)
    return Row(f"{experts} experts", ours, others[name].times(1e3, "ms"), ratio(mine, others[name]), name, more)


def _tell(rows: list[Row], tables: list[dict[str, Figure]], shape: Shape, rate: float) -> None:
    names = list(dict.fromkeys(name for table in tables for name in table))
    lines = []
    for name in names:
        medians = [table[name].median if name in table else None for table in tables]
        cells = ["-" if s is None else f"{significant(s * 1e3)} ({shape.flops / rate / s:.2f})" for s in medians]
        lines.append([name, *cells])
    lines.append(["times as fast as the best", *(f"{r.ratio.median:.2f}" if r.ratio else "-" for r in rows)])
    show([f"ms (share of {rate / 1e9:.0f} GFLOP/s)", *(row.case for row in rows)], lines)


def _draw(options: Options, tables: list[dict[str, Figure]]) -> None:
    from benches.plots import lines

    names = [name for name in tables[0] if all(name in table for table in tables)]
    series = {name: [table[name].median * 1e3 for table in tables] for name in names}
    title = f"MoE layer, {options.dtype}, {options.tokens} tokens"
    lines(Path(options.out) / f"layer_{options.dtype}.svg", title, ("experts", "ms"), options.experts, series)
