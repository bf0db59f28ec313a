"""`megaswitch dry-run` as users give it."""

import json
import subprocess
import sys

import pytest

from megaswitch.cli import main

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from megaswitch.cli import main; sys.exit(main())"
TINY = ("dry-run", "--model.preset=switch_tiny", "--train.global_batch=8", "--layout.ep=4", "--layout.pp=2")


def test_help_answers_without_torch():
    command = [sys.executable, "-c", WITHOUT_TORCH, "dry-run", "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    for word in ("--world", "--ranks", "--routing", "--json", "--out", "megaswitch dry-run --config"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "--world"),
        (("--world", "8", "--rank", "8"), "first, last, worst or 0 to 7"),
        (("--world", "8", "--ranks", "first,best"), "'best' is no rank"),
        (("--world", "0"), "--world wants"),
        (("--world", "8", "--out", "m.pdf"), ".svg nor .png"),
        (("--world", "8", "--layout.tp=3"), "layout"),
        (("--world", "8", "--layout.tpp=3"), "layout.tp"),
        (("--world", "8", "--routing", "bad"), "--routing"),
    ],
)
def test_wrong_usage_is_told(capsys, argv, told):
    assert main(["dry-run", *argv]) == 64
    assert told in capsys.readouterr().err


def test_one_rank_as_text_and_picture(capsys, tmp_path):
    picture = tmp_path / "memory.svg"
    assert main([*TINY, "--world", "16", "--rank", "5", "--out", str(picture)]) == 0
    shown = capsys.readouterr().out
    told = "rank 5 of 16", "activations", "all_to_all", "host work a step: ", "bubble", "shard-00005.safetensors"
    assert all(words in shown for words in told)
    assert picture.read_text().startswith("<?xml") and "peak" in picture.read_text()


def test_several_ranks_as_json(capsys):
    assert main([*TINY, "--world", "16", "--ranks", "first,last,worst", "--json"]) == 0
    ranks = json.loads(capsys.readouterr().out)["ranks"]
    assert [facts["rank"] for facts in ranks[:2]] == [0, 15]
    assert ranks[2]["memory"]["peak"] >= max(facts["memory"]["peak"] for facts in ranks)
    for facts in ranks:
        assert facts["memory"]["weights"] == pytest.approx(2 * facts["parameters"]["held"]["total"], rel=0.01)
        launched = facts["host"]["launched"]
        assert launched["total"] == sum(launched.values()) / 2 > 500 and launched["recompute"] == 0
        assert facts["host"]["reads"]["record"] == 1 and facts["host"]["reads"]["expert_splits"] > 0
        assert 0 < facts["bubble"] < 1 and facts["flops"]["total"]["backward"] > 0
        assert {one["axis"] for one in facts["collectives"]} >= {"pp", "ep", "dp", "world"}
