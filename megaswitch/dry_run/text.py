"""Facts as text."""

from io import StringIO

from rich.console import Console
from rich.table import Table

from megaswitch.dry_run.facts import Facts
from megaswitch.dry_run.memory import KINDS
from megaswitch.dry_run.products import PASSES

_WIDTH = 110


def quantity(number: float, unit: str = "") -> str:
    """Four digits with a decimal prefix: 61.26 GB."""
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.4g} {prefix}{unit}"
    return f"{number:.4g} {unit}".rstrip()


def as_text(facts: Facts) -> str:
    """What `facts.facts_of` found, as tables."""
    console = Console(file=StringIO(), width=_WIDTH, highlight=False)
    layout = facts["layout"]
    console.print(
        f"[bold]{facts['preset'] or 'model'}, rank {facts['rank']} of {facts['world']}[/bold]\n"
        f"world = pp {layout['pp']} x dp {layout['dp']} x tp {layout['tp']} (experts: edp {layout['edp']} x "
        f"ep {layout['ep']} x etp {layout['etp']}), {facts['microbatches']} micro-batches, {facts['routing']} routing\n"
    )
    for table in (_parameters(facts), _memory(facts), _collectives(facts), _flops(facts)):
        console.print(table)
        console.print()
    file = facts["checkpoint"]
    lines = _host(facts)
    lines += [f"bubble {facts['bubble']:.1%} (stages as long as their FLOPs)"]
    lines += [f"checkpoint: {file['file']} {quantity(file['bytes'], 'B')}; all shards {quantity(file['all'], 'B')}"]
    lines += [f"{stack}: {n:.0f} tokens an expert and pass" for stack, n in facts["tokens_per_expert"].items()]
    lines += [f"[yellow]warning:[/yellow] {line}" for line in facts["warnings"]]
    console.print("\n".join(lines))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    return text


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), title_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    return table


def _parameters(facts: Facts) -> Table:
    held, whole = facts["parameters"]["held"], facts["parameters"]["global"]
    table = _table("parameters", "part", "held", "of the model")
    for part, number in whole.items():
        if number:
            table.add_row(part, f"{held[part]:,}", f"{number:,}")
    return table


def _memory(facts: Facts) -> Table:
    table = _table("memory", "kind", "highest", "at the peak")
    memory = facts["memory"]
    for kind in KINDS:
        table.add_row(kind, quantity(memory[kind], "B"), quantity(memory["at_peak"][kind], "B"))
    table.add_row("all together", "", quantity(memory["peak"], "B"), style="bold")
    return table


def _collectives(facts: Facts) -> Table:
    table = _table("collectives of a step", "axis", "operation", "count", "bytes", "leave the rank")
    for one in facts["collectives"]:
        numbers = (f"{one['count']:,}", quantity(one["bytes"], "B"), quantity(one["wire"], "B"))
        table.add_row(one["axis"], one["op"], *numbers)
    return table


def _flops(facts: Facts) -> Table:
    table = _table("FLOPs of a step", "part", *PASSES)
    for kind, of in facts["flops"].items():
        if any(of.values()):
            table.add_row(kind, *(quantity(of[each]) for each in PASSES), style="bold" if kind == "total" else "")
    return table


def _host(facts: Facts) -> list[str]:
    """What the host does: operations that it launches, by part of the step, and its reads."""
    launched, reads = facts["host"]["launched"], facts["host"]["reads"]
    total = f"{launched['total']:,} operations launched, {reads['total']:,} reads of the device"
    return [f"host work a step: {total}", f"  operations: {_parts(launched)}", f"  reads: {_parts(reads) or 'none'}"]


def _parts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if n and name != "total")
