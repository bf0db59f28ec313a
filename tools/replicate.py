"""Repeats the paper's small comparisons on the quickstart's corpus: same data, same steps, one thing changed.

Each experiment trains its variants with several seeds, as processes of the `megaswitch` command, and writes a
table (Markdown) and a plot of the loss (PNG). Nothing here decides what should come out: see tools/README.md for
what came out, beside the paper's figures.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from megaswitch.data.prep.command import Parser, positive

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "python tools/replicate.py capacity --steps 100 --out runs/replicate  # after launch/quickstart.sh"
COMMON = (
    "--config=launch/configs/quickstart.toml",
    "--checkpoint.resume=none",
    "--checkpoint.every=0",
    "--eval.every=0",
    "--eval.batches=4",
    "--train.global_batch=64",
    "--train.micro_batch=64",
    "--log.tensorboard=false",
    "--run.threads=1",
)
TAIL = 10  # steps over which the last training loss is averaged


@dataclass(frozen=True)
class Experiment:
    """Variants by name, each with what it changes; `paper` says where the paper's figures stand."""

    title: str
    paper: str
    variants: dict[str, tuple[str, ...]]
    seeds: int = 1


EXPERIMENTS = {
    "init": Experiment(
        "Initialisation scale",
        "Table 3",
        {"scale 0.1": ("--model.init_scale=0.1",), "scale 1.0": ("--model.init_scale=1.0",)},
        seeds=3,
    ),
    "aux": Experiment(
        "Load-balancing loss",
        "section 2.2",
        {"alpha 0.01": ("--model.aux_loss_coef=0.01",), "alpha 0": ("--model.aux_loss_coef=0",)},
        seeds=2,
    ),
    "precision": Experiment(
        "Precision",
        "Table 2",
        {
            "float32": ("--train.dtype=float32",),
            "selective": ("--train.dtype=bfloat16", "--model.router_dtype=float32"),
            "bfloat16": ("--train.dtype=bfloat16", "--model.router_dtype=narrow"),
        },
        seeds=2,
    ),
    "capacity": Experiment(
        "Capacity factor",
        "Table 1",
        {f"factor {c}": (f"--model.capacity_factor={c}",) for c in ("1.0", "1.25", "2.0")},
        seeds=2,
    ),
    "routing": Experiment(
        "Switch, top-2 and dense; top-2 has the same slots, so at most the same products",
        "Table 1",
        {
            "switch": (),
            "top-2": ("--model.router=top2",),
            "dense": (
                "--model.num_experts=0",
                "--model.num_sparse_encoder_layers=0",
                "--model.num_sparse_decoder_layers=0",
            ),
        },
        seeds=2,
    ),
}


@dataclass(frozen=True)
class Result:
    """One run: its losses by step, and figures of its end (NaN where it did not get there)."""

    nll: list[float]
    valid_nll: float
    dropped: float
    tokens_per_s: float


def run(folder: Path, arguments: tuple[str, ...], steps: int, seed: int) -> Result:
    """Train one variant in a process of its own, unless its record is there and whole."""
    record = folder / "metrics.jsonl"
    lines = _lines(record)
    if len(lines) < steps:
        command = [sys.executable, "-m", "megaswitch", "train", *COMMON, f"--train.steps={steps}"]
        command += [f"--train.seed={seed}", f"--run.dir={folder}", *arguments]
        folder.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(folder / "log.txt", "w") as log:
            code = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log, check=False).returncode
        if code not in (0, 78):  # a run that diverges is a result
            raise SystemExit(f"{folder}: the run ended with code {code}; see {folder / 'log.txt'}")
        lines = _lines(record)
    nll, last = [line["nll"] for line in lines], lines[-1] if lines else {}
    speed = mean(line["tokens_per_s"] for line in lines[-TAIL:]) if lines else float("nan")
    dropped = mean(line["dropped"] for line in lines[-TAIL:]) if lines else float("nan")
    return Result(nll, last.get("valid_nll", float("nan")), dropped, speed)


def _lines(record: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def run_all(experiment: Experiment, out: Path, steps: int, workers: int) -> dict[str, list[Result]]:
    """Every variant with every seed, `workers` at a time."""
    jobs = [(name, seed) for name in experiment.variants for seed in range(1, experiment.seeds + 1)]
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(run, out / f"{name.replace(' ', '-')}-{seed}", experiment.variants[name], steps, seed)
            for name, seed in jobs
        ]
        results: dict[str, list[Result]] = {}
        for (name, seed), future in zip(jobs, futures, strict=True):
            results.setdefault(name, []).append(future.result())
            print(f"  {name}, seed {seed}: validation nll {results[name][-1].valid_nll:.4f}", flush=True)
    return results


def table(experiment: Experiment, results: dict[str, list[Result]], steps: int) -> str:
    """Means over seeds, with the standard deviation where there are several."""
    head = f"{experiment.title} ({steps} steps, {experiment.seeds} seeds; the paper: {experiment.paper})"
    rows = ["| variant | validation nll | training nll | dropped | tokens/s |", "|---|---|---|---|---|"]
    for name, runs in results.items():
        valid = _spread([r.valid_nll for r in runs])
        final = _spread([mean(r.nll[-TAIL:]) if r.nll else float("nan") for r in runs])
        dropped, speed = mean(r.dropped for r in runs), mean(r.tokens_per_s for r in runs)
        rows.append(f"| {name} | {valid} | {final} | {100 * dropped:.1f}% | {speed:,.0f} |")
    return "\n".join([head, "", *rows, ""])


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def plot(experiment: Experiment, results: dict[str, list[Result]], path: Path) -> None:
    """Training loss by step, a colour a variant, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for i, (name, runs) in enumerate(results.items()):
        for k, result in enumerate(runs):
            label = name if k == 0 else None
            axes.plot(range(1, len(result.nll) + 1), result.nll, color=f"C{i}", label=label, linewidth=1)
    axes.set(xlabel="step", ylabel="cross-entropy per target (nats)", title=experiment.title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = Parser(__doc__ or "", EXAMPLE)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"any of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--steps", type=positive, default=100, help="steps of each run")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "replicate", help="folder of runs and results")
    parser.add_argument("--workers", type=positive, default=2, help="runs at a time, one thread each")
    args = parser.parse_args(argv)
    unknown = set(args.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}; choose of {', '.join(EXPERIMENTS)}")
    if not (ROOT / "runs" / "quickstart-data" / "corpus.idx").exists():
        parser.error("the quickstart's corpus is not there; run launch/quickstart.sh first")
    out = args.out.resolve()
    for name in args.experiments or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        print(f"{name}: {len(experiment.variants)} variants x {experiment.seeds} seeds", flush=True)
        results = run_all(experiment, out / name, args.steps, args.workers)
        text = table(experiment, results, args.steps)
        (out / f"{name}.md").write_text(text)
        plot(experiment, results, out / f"{name}.png")
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
