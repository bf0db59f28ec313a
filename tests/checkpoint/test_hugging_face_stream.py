"""Memory of a conversion: a model many times larger than its largest tensor passes through in little more than that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megaswitch.checkpoint.hugging_face.names import their_names, transposed
from megaswitch.checkpoint.hugging_face.stream import into_files
from megaswitch.checkpoint.shard import Pending, write_shard, write_stream
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs

MEBIBYTE = 1 << 20
MODEL = ModelConfig(
    vocab_size=6144,
    d_model=256,
    d_ff=1024,
    d_kv=64,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=64,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1,
)
"""Tensors of 6 MiB at most, and 256 MiB of experts, 64 MiB in each of ours that stacks them."""
ALLOWED = 40 * MEBIBYTE
"""What a conversion may hold at once: a tensor or two and a block of 16 MiB."""

SCRIPT = """
import sys, threading
from pathlib import Path
from megaswitch.checkpoint.hugging_face.exporting import export_model
from megaswitch.checkpoint.hugging_face.importing import import_model

def held():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def peak(work):
    before, most, done = held(), [0], threading.Event()
    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], held())
    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return most[0] - before

root = Path(sys.argv[1])
print(peak(lambda: import_model(root / "hf", root / "c")))
print(peak(lambda: export_model(root / "c", root / "again", most_file_bytes=100 << 20)))
"""


def write_folder(folder: Path) -> int:
    """A folder of random weights in several files; its bytes."""
    folder.mkdir()
    where, size = {}, 0
    for number, (name, spec) in enumerate(param_specs(MODEL).items()):
        inner = spec.shape[1:] if spec.expert else spec.shape
        shape = tuple(reversed(inner)) if transposed(name) else inner
        tensors = {n: torch.rand(shape) for n in their_names(name, MODEL, "switch_transformers")}
        file = f"model-{number + 1:05d}.safetensors"
        save_file(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
        size += (folder / file).stat().st_size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "switch_transformers", "expert_capacity": 2**31 - 1}))
    return size


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process where Linux tells it")
def test_a_conversion_holds_little_more_than_a_tensor(tmp_path):
    assert write_folder(tmp_path / "hf") > 256 * MEBIBYTE
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    imported, exported = map(int, done.stdout.split())
    assert imported < ALLOWED and exported < ALLOWED, (imported / MEBIBYTE, exported / MEBIBYTE)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 2


def pending(tensors: dict[str, torch.Tensor]) -> list[Pending]:
    return [Pending(n, t.dtype, tuple(t.shape), lambda t=t: t) for n, t in tensors.items()]


def test_a_stream_is_the_file_that_is_written_at_once(tmp_path):
    """Up to what the header says beside the tensors; any strides, any order of types, more than one block."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.rand(3, 5, generator=generator).bfloat16(),
        "a": torch.rand(700, 8192, generator=generator).t(),
        "c": torch.rand(2, 3, 4, generator=generator).permute(0, 2, 1),
        "d": torch.rand(7, dtype=torch.float64, generator=generator),
        "empty": torch.rand(0, 4),
    }
    info = write_stream(tmp_path / "stream", pending(tensors))
    write_shard(tmp_path / "once", tensors)
    from safetensors.torch import load_file

    one, other = load_file(tmp_path / "stream"), load_file(tmp_path / "once")
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in tensors)
    assert info.size == (tmp_path / "stream").stat().st_size
    raw = (tmp_path / "stream").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0
    with pytest.raises(FileExistsError):
        write_stream(tmp_path / "stream", [])


def test_files_are_filled_in_order_and_a_large_tensor_has_its_own():
    sizes = [40, 40, 30, 200, 10, 90]
    tensors = pending({str(i): torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)})
    assert [[t.name for t in file] for file in into_files(tensors, 100)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert into_files([], 100) == []
