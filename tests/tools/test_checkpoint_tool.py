"""tools/checkpoint.py, run as a user runs it, on checkpoints that are whole, damaged and not there."""

import importlib.util
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from megaswitch.checkpoint.format import Piece, step_name
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.store import save
from megaswitch.checkpoint.training import weights_only_state
from megaswitch.config.documents import from_dict, to_dict
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.params.boxes import Box
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.config import RunConfig
from megaswitch.train.plan import tensors_of_rank

TOOL = Path(__file__).parents[2] / "tools" / "checkpoint.py"


def tool(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def checkpoint(tmp_path):
    tensor = torch.arange(12.0).reshape(3, 4)
    piece = Piece("weight/a", (3, 4), Box((0, 0), (3, 4)), tensor)
    return save(tmp_path, 7, [piece], {"config": {"model": {"preset": "switch_tiny"}}}, None)


def test_help_shows_an_example():
    done = tool("--help")
    assert done.returncode == 0 and "example:\n  python tools/checkpoint.py verify " in done.stdout


def test_inspect_lists_what_is_there(checkpoint):
    done = tool("inspect", checkpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 7\n") and "weight/a  float32  [3, 4]" in done.stdout
    assert "switch_tiny" in done.stdout


def test_verify_accepts_a_whole_checkpoint(checkpoint):
    done = tool("verify", checkpoint)
    assert done.returncode == 0, done.stderr
    assert f"{step_name(7)}: step 7, 1 tensors, 1 files" in done.stdout


def test_verify_names_the_damaged_file(checkpoint):
    shard = checkpoint / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # the size stays: only the hash can tell
    shard.write_bytes(content)
    assert tool("inspect", checkpoint).returncode == 0
    done = tool("verify", checkpoint)
    assert done.returncode == 65 and done.stderr.count("\n") == 1 and str(shard) in done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify", "diff"])
def test_a_folder_that_is_no_checkpoint(command, checkpoint, tmp_path):
    (checkpoint / "manifest.json").unlink()
    more = [checkpoint] if command == "diff" else []
    assert call(command, checkpoint, *more)[0] == 65
    assert call(command, tmp_path / "nowhere", *more)[0] == 66


def test_wrong_usage(checkpoint, tmp_path):
    assert tool("repair", "x").returncode == 64
    assert tool().returncode == 64
    wrong = [["reshard", checkpoint, tmp_path / "out"], ["reshard", checkpoint, tmp_path / "out", "--files", "0"]]
    wrong += [["average", checkpoint], ["diff", checkpoint], ["verify"]]
    for arguments in wrong:
        assert call(*arguments)[0] == 64, arguments


def call(*arguments):
    """The tool in this process: exit code, standard output and error."""
    spec = importlib.util.spec_from_file_location("checkpoint_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["checkpoint.py", *map(str, arguments)]):
        try:
            code = module.main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def state_tensors(seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "weight/a": torch.randn(60, 7, generator=g),
        "weight/half": torch.randn(33, generator=g).bfloat16(),
        "weight/experts": torch.randn(4, 5, 6, generator=g, dtype=torch.float64),
        "exp_avg/a": torch.randn(60, 7, generator=g),
        "count": torch.tensor(seed),
        "nothing": torch.zeros(0, 3),
    }


def write(root, step, tensors):
    pieces = [Piece(n, tuple(x.shape), Box((0,) * x.dim(), tuple(x.shape)), x) for n, x in tensors.items()]
    return save(root, step, pieces, {"samples": step}, None)


@pytest.fixture
def pair(tmp_path):
    return [write(tmp_path / str(step), step, state_tensors(step)) for step in (1, 2)]


@pytest.mark.parametrize("files", [1, 3, 40])
def test_reshard_to_a_number_of_files(pair, tmp_path, files):
    code, out, err = call("reshard", pair[0], tmp_path / "new", "--files", files)
    assert code == 0, err
    assert f"6 tensors in {files} files" in out
    assert len(list((tmp_path / "new").glob("shard-*.safetensors"))) == files
    code, out, err = call("diff", pair[0], tmp_path / "new")
    assert (code, out, err) == (0, "0 of 6 tensors differ\n", "")
    reader = Reader(tmp_path / "new")
    assert reader.step == 1 and reader.state == {"samples": 1}
    held = dict.fromkeys(range(files), 0)
    for name, slices in reader._manifest.slices.items():
        for s in slices:
            held[int(s.file[6:11])] += s.box.size * reader.tensors[name].dtype.itemsize
    assert max(held.values()) - min(held.values()) <= 16  # an element's width at each end
    assert call("reshard", pair[0], tmp_path / "new", "--files", files)[0] == 73  # it is there already


def test_reshard_reads_from_a_url(pair, tmp_path):
    assert call("reshard", f"file://{pair[0]}", tmp_path / "new", "--files", 2)[0] == 0
    assert call("diff", f"file://{tmp_path}/new", pair[0])[0] == 0


def test_reshard_to_a_layout(tmp_path):
    sizes = {"vocab_size": 40, "d_model": 8, "d_ff": 12, "d_kv": 4, "num_heads": 2, "num_experts": 4}
    sizes |= {f"num_{sparse}{s}coder_layers": 1 + (not sparse) for sparse in ("", "sparse_") for s in ("en", "de")}
    model = ModelConfig(**sizes)
    weights = {f"weight/{n}": torch.randn(spec.shape) for n, spec in param_specs(model).items()}
    pieces = [Piece(n, tuple(x.shape), Box((0,) * x.dim(), tuple(x.shape)), x) for n, x in weights.items()]
    source = save(tmp_path, 0, pieces, weights_only_state({"model": to_dict(model)}), None)
    code, _, err = call("reshard", source, tmp_path / "new", "--world", 8, "--tp", 2, "--pp", 2, "--ep", 2)
    assert code == 0, err
    assert len(list((tmp_path / "new").glob("shard-*"))) == 8
    assert call("diff", source, tmp_path / "new")[0] == 0
    config = from_dict(RunConfig, {"model": to_dict(model)}, "", complete=False)
    config = replace(config, layout=LayoutConfig(tp=2, pp=2, ep=2))
    reader = Reader(tmp_path / "new")
    for rank in range(8):  # each rank finds in its own file what it saves
        shard = f"shard-{rank:05d}.safetensors"
        for t in tensors_of_rank(config, 8, rank):
            if t.primary and t.name in reader.tensors:
                assert any(s.file == shard and s.box == t.box for s in reader._manifest.slices[t.name]), t.name
    code, _, err = call("reshard", source, tmp_path / "no", "--world", 8, "--tp", 8)
    assert code == 64 and "layout.tp" in err
    assert not (tmp_path / "no").exists()


def test_average_of_weights(pair, tmp_path):
    assert call("average", *pair, "--out", tmp_path / "mean")[0] == 0
    reader, one, two = Reader(tmp_path / "mean"), state_tensors(1), state_tensors(2)
    assert sorted(reader.tensors) == ["weight/a", "weight/experts", "weight/half"]
    for name in reader.tensors:
        expected = ((one[name].double() + two[name].double()) / 2).to(one[name].dtype)
        assert torch.equal(reader.read_all(name), expected)
    assert reader.step == 2 and reader.state == {"samples": 2, "weights_only": True}


def test_average_with_the_last_ones_optimizer(pair, tmp_path):
    assert call("average", *pair, "--out", tmp_path / "mean", "--optimizer", "last", "--files", 2)[0] == 0
    reader = Reader(tmp_path / "mean")
    assert reader.state == {"samples": 2}
    assert torch.equal(reader.read_all("exp_avg/a"), state_tensors(2)["exp_avg/a"])
    assert int(reader.read_all("count")) == 2


def test_average_of_different_models(pair, tmp_path):
    other = write(tmp_path / "3", 3, {"weight/a": torch.zeros(2, 2)})
    code, _, err = call("average", pair[0], other, "--out", tmp_path / "mean")
    assert code == 65 and "different models" in err and not (tmp_path / "mean").exists()


def test_diff_tells_what_differs_and_by_how_much(pair, tmp_path):
    tensors = state_tensors(1)
    tensors["weight/a"][3, 4] += 0.5
    tensors["weight/half"] = tensors["weight/half"].float()
    tensors["count"] = torch.tensor([1])
    tensors["new"] = tensors.pop("nothing")
    other = write(tmp_path / "other", 1, tensors)
    code, out, err = call("diff", pair[0], other)
    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert code == 1 and "5 of 7 tensors differ" in out and err == ""
    assert "1 of 420 elements differ, by 0.5 at most" in lines["weight/a"]
    assert lines["weight/half"] == "is bfloat16 [33] and float32 [33]"
    assert lines["count"] == "is int64 [] and int64 [1]"
    assert "is only in" in lines["new"] and "is only in" in lines["nothing"]
    assert call("diff", pair[0], pair[1])[2] == "note: samples: 1, now 2\nnote: step: 1, now 2\n"


def test_diff_of_what_is_no_number(tmp_path):
    x = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])
    same, nan = write(tmp_path / "1", 1, {"x": x}), write(tmp_path / "2", 1, {"x": x.clone()})
    assert call("diff", same, nan)[0] == 0
    other = write(tmp_path / "3", 1, {"x": torch.tensor([float("nan"), 1.0, 0.0, 1.0])})
    code, out, _ = call("diff", same, other)
    assert code == 1 and "2 of 4 elements differ, by inf at most" in out


MEMORY = """
import sys, threading
from pathlib import Path
sys.argv = sys.argv[1:]
def held():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
import runpy, torch
import megaswitch.checkpoint.rewrite, megaswitch.checkpoint.compare
before, most, done = held(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], held())
thread = threading.Thread(target=watch)
thread.start()
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
done.set(); thread.join()
print(most[0] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process where Linux tells it")
@pytest.mark.long
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """256 MiB in one tensor pass in blocks of 32 MiB, of which diff and average hold a few."""
    big = write(tmp_path / "big", 1, {"weight/x": torch.rand(256, 1024, 256)})
    for arguments in (
        ["reshard", big, tmp_path / "new", "--files", "2"],
        ["diff", big, tmp_path / "new"],
        ["average", big, tmp_path / "new", "--out", tmp_path / "mean"],
    ):
        command = [sys.executable, "-c", MEMORY, str(TOOL), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        assert int(done.stdout.split()[-1]) < 224 << 20, arguments
