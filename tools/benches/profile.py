"""Where the time of a step goes, and the least that each part would take on this machine."""

import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile, record_function

from benches.command_line import Options
from benches.floors import PARTS, needs
from benches.models import DTYPES, Ours, refuse_too_large, run_config, switch_model
from benches.parts import STEP, marked, operations, scopes
from benches.rates import measure_rates
from benches.report import Row, finish, number, show, significant
from benches.timing import SETTLED, Figure, clocked, in_turns
from megaswitch.dry_run.step import watch_step
from megaswitch.dry_run.watch import Watch
from megaswitch.utils.host import answered_by

_LISTED = 12


def measure(options: Options) -> None:
    """Profiles several steps; the parts' shares are the profile's without its own time, the whole is timed without
    it."""
    model = switch_model(options, options.experts)
    refuse_too_large([model])
    ours = Ours(run_config(model, options))
    record = ours.step().record
    repeats = 2 if options.quick else options.repeats
    rates = measure_rates(DTYPES[options.dtype], options.threads, quick=options.quick)
    warm = 1 if options.quick else SETTLED
    whole = in_turns({"step": clocked(ours.step)}, repeats, options.threads, warm)["step"]
    profiles = [_profiled(ours) for _ in range(repeats)]
    shares = _shares(profiles, whole.median)
    size = DTYPES[options.dtype].itemsize
    floors = {part: need.seconds(rates) for part, need in needs(ours.config, record, size).items()}
    host = _host_work(ours)
    _tell(shares, floors, whole)
    print(f"it launches {host['launched']['total']:,} operations and reads the device {host['reads']['total']} times")
    _tell_operations(profiles[-1])
    print(f"\nproducts at {rates.flops / 1e9:.0f} GFLOP/s in {options.dtype} ({rates.plain / 1e9:.0f} by torch.mm)")
    print(f"a copy reads and writes {rates.bytes / 1e9:.1f} GB/s, a change in place {rates.updated / 1e9:.1f} GB/s")
    floor = sum(floors.values())
    bound = Figure(tuple(floor for _ in whole.values), "s")
    of_floor = Figure(tuple(floor / value for value in whole.values), "times")
    parts = {p: {"seconds": s * whole.median, "share": s, "floor": floors.get(p, 0.0)} for p, s in shares.items()}
    rest = 1.0 - sum(shares[p] for p in ("products", "attention", "optimizer"))
    more = {"parts": parts, "neither_product_attention_nor_optimizer": rest, "rates": asdict(rates), "host": host}
    row = Row(f"{options.experts} experts", whole, bound, of_floor, "what the machine allows", more)
    if options.out:
        _draw(parts, Path(options.out), f"{options.experts} experts, d_model {model.d_model}, {options.dtype}")
    finish(options, [row])


def _profiled(ours: Ours) -> EventList:
    system = marked(ours.system)
    with scopes(), profile(activities=[ProfilerActivity.CPU]) as seen, record_function(STEP):
        ours.step(system)
    return seen.events()


def _host_work(ours: Ours) -> dict[str, dict[str, int]]:
    """What a step asks of the host (see `dry_run.host_work`), counted beside the timing."""
    watch = Watch(played=False)
    with watch.watching(), answered_by(watch.host.counting(lambda kind, tensor: tensor.tolist())):
        watch_step(ours.system, ours.batches, watch)
    return watch.host.facts()


def _shares(profiles: list[EventList], whole: float) -> dict[str, float]:
    """The median of each part's share over the profiles, made to add up to 1."""
    found = [_without_own_time(events, whole) for events in profiles]
    middle = {part: statistics.median(one[part] / one.total() for one in found) for part in PARTS}
    return {part: share / sum(middle.values()) for part, share in middle.items()}


def _without_own_time(events: EventList, whole: float) -> Counter[str]:
    """Seconds by part. What a step takes longer than `whole` under the profile is the profile's own time, the same for
    every event: a part of many small operations would otherwise look dearer than it is."""
    calls: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for (part, _), (number_of, seconds) in operations(events).items():
        calls[part] += number_of
        found[part] += seconds
    each = max(0.0, found.total() - whole) / max(1, calls.total())
    return Counter({part: max(0.0, seconds - each * calls[part]) for part, seconds in found.items()})


def _tell(shares: dict[str, float], floors: dict[str, float], whole: Figure) -> None:
    lines = []
    for part, share in shares.items():
        taken, least = share * whole.median, floors.get(part, 0.0)
        lines.append(_line(part, share, taken, least))
    lines.append(_line("whole", 1.0, whole.median, sum(floors.values())))
    show(["part", "share", "ms", "floor, ms", "of the floor"], lines)
    print(f"\na step without the profile: {number(whole.times(1e3, 'ms'))} ms")


def _line(part: str, share: float, taken: float, least: float) -> list[str]:
    reached = f"{least / taken:.0%}" if least and taken else "-"
    return [part, f"{share:.1%}", significant(taken * 1e3), significant(least * 1e3) if least else "-", reached]


def _tell_operations(events: EventList) -> None:
    """The dearest operations."""
    found = operations(events)
    total = sum(seconds for _, seconds in found.values())
    dearest = sorted(found.items(), key=lambda item: -item[1][1])[:_LISTED]
    print("\nthe dearest operations:")
    lines = [[name, part, str(calls), f"{seconds / total:.1%}"] for (part, name), (calls, seconds) in dearest]
    show(["operation", "part", "calls", "share"], lines)


def _draw(parts: dict[str, dict[str, float]], folder: Path, title: str) -> None:
    from benches.plots import bars

    names = [part for part in parts if parts[part]["seconds"]]
    taken, least = ([parts[part][what] * 1e3 for part in names] for what in ("seconds", "floor"))
    bars(folder / "profile.svg", title, "ms", names, {"taken": taken, "floor": least})
