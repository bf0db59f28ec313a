"""`megaswitch schedule`: the real stages' costs, the configuration's own arguments, and what is refused."""

import json

import pytest

from megaswitch.cli import main
from megaswitch.model.config import ModelConfig
from megaswitch.model.flops import flops_per_sequence
from megaswitch.model.presets import presets


def facts(capsys, *argv):
    assert main(["schedule", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_costs_are_those_of_the_real_stages(capsys):
    told = facts(capsys, "--preset", "switch_large_128", "--pp", "3", "--microbatches", "5")
    (one,) = told["schedules"]
    assert told["preset"] == "switch_large_128"
    assert (one["kind"], one["pp"], one["chunks"], one["microbatches"]) == ("1f1b", 3, 2, 5)
    flops = {stage["stage"]: stage["forward_flops"] for stage in one["stages"]}
    whole = flops_per_sequence(ModelConfig(**presets()["switch_large_128"]["model"]))
    assert sum(flops.values()) == pytest.approx(whole)
    for rank, spans in enumerate(one["spans"]):
        assert len(spans) == 5 * 2 * 2
        for span in spans:
            stage = rank + 3 * int(span["action"].split(".")[1])
            passes = 2 if span["action"].startswith("B") else 1
            assert span["end"] - span["start"] == pytest.approx(passes * flops[stage] * 6 / whole)
    assert one["makespan"] == max(spans[-1]["end"] for spans in one["spans"])
    busy = [sum(span["end"] - span["start"] for span in spans) / one["makespan"] for spans in one["spans"]]
    assert one["busy"] == pytest.approx(busy) and one["bubble"] == pytest.approx(1 - sum(busy) / 3)


def test_a_v_comes_back_to_the_first_rank(capsys):
    (one,) = facts(capsys, "--kind", "zb_v", "--pp", "2")["schedules"]
    assert [(s["rank"], s["chunk"], s["stage"]) for s in one["stages"]] == [(0, 0, 0), (0, 1, 3), (1, 0, 1), (1, 1, 2)]
    assert [s["blocks"].split()[0] for s in one["stages"]] == ["encoder", "decoder", "encoder", "decoder"]
    assert one["peak_live"] == [4, 4]


def test_all_kinds_at_once_and_what_they_come_to(capsys):
    told = {one["kind"]: one for one in facts(capsys, "--kind", "all")["schedules"]}
    assert told.keys() == {"1f1b", "gpipe", "zb_h1", "zb_v"}
    assert told["gpipe"]["bubble"] > told["1f1b"]["bubble"] > told["zb_h1"]["bubble"] > told["zb_v"]["bubble"]
    assert told["gpipe"]["peak_live"] == [16] * 4 and told["zb_v"]["peak_live"] == [8] * 4
    alone = facts(capsys, "--kind", "all", "--chunks", "1")["schedules"]
    assert [one["kind"] for one in alone] == ["1f1b", "gpipe", "zb_h1"]


def test_messages_take_time(capsys):
    free, dear = (facts(capsys, "--transfer", t)["schedules"][0]["makespan"] for t in ("0", "0.5"))
    assert dear >= free + 0.5 * 8, "two borders between stages for each of four ranks, there and back"


def test_the_configurations_own_arguments_are_taken(capsys, tmp_path):
    (tmp_path / "f.toml").write_text('[model]\npreset = "switch_tiny"\n[layout]\npp = 2\nschedule = "gpipe"\n')
    told = facts(capsys, "--config", str(tmp_path / "f.toml"), "--layout.stages=1,3,3,1", "--layout.ep=4")
    (one,) = told["schedules"]
    assert told["preset"] == "switch_tiny" and one["kind"] == "gpipe" and one["pp"] == 2
    assert [s["blocks"] for s in one["stages"]] == ["encoder 0", "decoder 0-2", "encoder 1-3", "decoder 3"]
    (one,) = facts(capsys, "--config", str(tmp_path / "f.toml"), "--kind", "1f1b", "--pp", "1")["schedules"]
    assert one["kind"] == "1f1b" and one["pp"] == 1 and one["bubble"] == 0


def test_text_tells_the_same(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    (one,) = facts(capsys, "--pp", "2", "--kind", "zb_h1")["schedules"]
    assert main(["schedule", "--pp", "2", "--kind", "zb_h1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ZB-H1: 2 ranks x 2 chunks, 4 micro-batches, bubble {one['bubble']:.1%}"
    assert [line[:8] for line in lines[1:3]] == ["rank 0 |", "rank 1 |"] and {len(line) for line in lines[1:3]} == {100}
    assert f"makespan {one['makespan']:.2f}, bubble {one['bubble']:.1%}" in lines
    rows = [line.split() for line in lines if line[:1].isdigit()]
    assert [(row[0], row[-2], row[-1]) for row in rows] == [
        (str(r), f"{one['busy'][r]:.1%}", str(one["peak_live"][r])) for r in range(2)
    ]
    assert main(["schedule", "--kind", "all"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line.split()[0] for line in lines if line.endswith(" 8 8 8 8")] == ["ZB-H1", "ZB-V"]


@pytest.mark.parametrize(("name", "start"), [("f.svg", b"<?xml"), ("sub/f.png", b"\x89PNG")])
def test_pictures_are_written(tmp_path, capsys, name, start):
    path = tmp_path / name
    assert main(["schedule", "--pp", "2", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(start) and capsys.readouterr().out == ""
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--kind", "2f2b"], "invalid choice: '2f2b'"),
        (["--out", "f.pdf"], "--out f.pdf is neither .svg nor .png"),
        (["--out", "f.svg", "--json"], "not allowed with"),
        (["--microbatches", "0"], "--microbatches wants 1 or more"),
        (["--transfer", "nan"], "--transfer 0 or more"),
        (["--transfer", "-1"], "--transfer 0 or more"),
        (["--preset", "switch_bas_8"], "there is no preset switch_bas_8; did you mean switch_base_8?"),
        (["--pp", "0"], "layout.pp: is 0; give a whole number of at least 1"),
        (["--pp", "two"], "--layout.pp=two should be"),
        (["--pp", "13"], "layout.pp: leaves a stage empty: encoder has 12 blocks for 13 stages"),
        (["--kind", "zb_v", "--chunks", "3"], "layout.chunks: is 3, but layout.schedule=zb_v wants 2"),
        (["--layout.stages=1,2"], "layout.stages: = 1,2 has 2 stages, but layout.pp x chunks = 8"),
        (["--model.d_modle=3"], "did you mean model.d_model?"),
        (["--model.d_ff=0"], "model.d_ff: is 0; give at least 1"),
        (["stray"], "'stray' is no argument"),
    ],
)
def test_what_is_refused(capsys, argv, told):
    assert main(["schedule", *argv]) == 64
    heard = capsys.readouterr()
    assert told in heard.err and heard.out == ""


def test_a_place_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["schedule", "--pp", "2", "--out", str(tmp_path / "file" / "f.svg")]) == 73
    assert str(tmp_path / "file") in capsys.readouterr().err
