"""`megaswitch dry-run` as users start it."""

import json
import subprocess
import sys

import pytest

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from megaswitch.cli import main; sys.exit(main())"


def start(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], check=False, capture_output=True, text=True, timeout=110)


def dry_run(*argv: str) -> subprocess.CompletedProcess:
    return start("-m", "megaswitch", "dry-run", *argv)


TINY = ("--model.preset=switch_tiny", "--train.global_batch=8", "--layout.ep=4", "--layout.pp=2")


def test_help_answers_without_torch():
    done = start("-c", WITHOUT_TORCH, "dry-run", "--help")
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
def test_wrong_usage_is_told(argv, told):
    done = dry_run(*argv)
    assert done.returncode == 64 and told in done.stderr and "Traceback" not in done.stderr


def test_one_rank_as_text_and_picture(tmp_path):
    picture = tmp_path / "memory.svg"
    done = dry_run(*TINY, "--world", "16", "--rank", "5", "--out", str(picture))
    assert done.returncode == 0, done.stderr
    for words in ("switch_tiny, rank 5 of 16", "activations", "all_to_all", "bubble", "shard-00005.safetensors"):
        assert words in done.stdout
    assert picture.read_text().startswith("<?xml") and "peak" in picture.read_text()


def test_several_ranks_as_json():
    done = dry_run(*TINY, "--world", "16", "--ranks", "first,last,worst", "--json")
    assert done.returncode == 0, done.stderr
    ranks = json.loads(done.stdout)["ranks"]
    assert [facts["rank"] for facts in ranks[:2]] == [0, 15]
    assert ranks[2]["memory"]["peak"] >= max(facts["memory"]["peak"] for facts in ranks)
    for facts in ranks:
        assert facts["memory"]["weights"] == pytest.approx(2 * facts["parameters"]["held"]["total"], rel=0.01)
        assert 0 < facts["bubble"] < 1 and facts["flops"]["total"]["backward"] > 0
        assert {one["axis"] for one in facts["collectives"]} >= {"pp", "ep", "dp", "world"}
