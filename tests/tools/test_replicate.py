"""The replication tool: its table from results, its plot, and its refusals."""

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "replicate.py"


@pytest.fixture(scope="module")
def replicate():
    spec = importlib.util.spec_from_file_location("replicate", TOOL)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["replicate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_variant_is_a_configuration_that_works(replicate, monkeypatch):
    from megaswitch.config.load import load
    from megaswitch.model.presets import presets
    from megaswitch.train.check import check
    from megaswitch.train.config import RunConfig

    monkeypatch.chdir(TOOL.parents[1])
    for name, experiment in replicate.EXPERIMENTS.items():
        for arguments in experiment.variants.values():
            config = load(RunConfig, presets(), [*replicate.COMMON, *arguments], "megaswitch train", "")
            assert check(config, 1) == [], name


def test_table_and_plot(replicate, tmp_path):
    experiment = replicate.Experiment("Title", "Table 0", {"a": (), "b": ()}, seeds=2)
    losses = [float(i) for i in range(20, 0, -1)]
    results = {
        "a": [replicate.Result(losses, 4.0, 0.5, 10.0), replicate.Result(losses, 6.0, 0.5, 30.0)],
        "b": [replicate.Result([], float("nan"), float("nan"), float("nan"))] * 2,
    }
    text = replicate.table(experiment, results, 20)
    assert "| a | 5.000 ± 1.414 | 5.500 ± 0.000 | 50.0% | 20 |" in text
    assert "| b | nan" in text, "a run that diverged at once is told, not left out"
    replicate.plot(experiment, results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_experiment_is_refused(replicate, capsys):
    with pytest.raises(SystemExit):
        replicate.main(["initt"])
    assert "initt" in capsys.readouterr().err
