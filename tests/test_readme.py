"""The README is true: its commands run, in order, as written; keys, commands, files and presets that it names exist.

A block of bash or Python under the comment `<!-- not run by the tests: why -->` is only read.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from megaswitch.cli import COMMANDS
from megaswitch.config.schema import leaves
from megaswitch.model.config import ModelConfig
from megaswitch.model.presets import presets, released
from megaswitch.train.config import RunConfig
from megaswitch.train.info import describe

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / name for name in ("README.md", "launch/README.md", "tools/README.md", "data_prep/README.md")]
README = GUIDES[0].read_text()
BLOCK = re.compile(r"(<!-- not run by the tests: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
SECTIONS = "model|layout|train|optim|data|eval|checkpoint|run|log|guard"
FOLDERS = "data_prep|launch|tools|tests|megaswitch"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and whether the tests run it."""

    language: str
    text: str
    runs: bool


def blocks():
    found = [Block(language, body, not skipped) for skipped, language, body in BLOCK.findall(README)]
    return [block for block in found if block.language]


def code(text):
    """Everything that stands in a fenced block, in an indented one or between backticks."""
    fenced = "\n".join(body for _, _, body in BLOCK.findall(text))
    rest = BLOCK.sub("", text)
    indented = "\n".join(re.findall(r"^ {4}\S.*$", rest, re.M))
    return "\n".join([fenced, indented, *re.findall(r"`([^`\n]+)`", rest)])


def guide(path):
    return str(path.relative_to(ROOT))


def table_with(heading):
    """Rows, as lists of cells, of the table whose first heading is this."""
    start = README.index(f"\n| {heading} |")
    lines = README[start + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def write_text(path):
    """Paragraphs of this project's own sources, a document each: text that is always at hand."""
    files = sorted([*ROOT.glob("megaswitch/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("*.md")])
    paragraphs = [p for file in files for p in file.read_text().split("\n\n") if len(p) > 80]
    assert len(paragraphs) > 1500
    path.write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs))


def environment():
    """That of an active `.venv`, on a machine with one thread a process and no run's variables."""
    unset = ("NNODES", "NODE_RANK", "MASTER_ADDR", "RDZV_ENDPOINT", "MAX_RESTARTS", "RANK", "WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.timeout(400)
def test_commands_run_in_order(tmp_path):
    for folder in ("data_prep", "launch", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "corpora").mkdir()
    write_text(tmp_path / "corpora" / "docs.jsonl")
    ran = [block for block in blocks() if block.runs]
    assert len(ran) >= 4
    for block in ran:
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else ["python", "-c"]
        done = subprocess.run(
            [*command, block.text], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    lines = [json.loads(line) for line in (tmp_path / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert_metrics_are_explained(lines[-1])


def assert_metrics_are_explained(line):
    explained = {key for row in table_with("key | meaning") for key in re.findall(r"`(\w+)`", row[0])}
    assert explained == set(line)
    parts = line["nll"] + line["z_loss"] + line["aux_loss"] + line["router_z_loss"]
    assert line["loss"] == pytest.approx(parts, rel=1e-6)


def test_only_marked_blocks_are_left_out():
    assert {block.language for block in blocks()} == {"bash", "python"}
    assert README.count("```") == 2 * len(BLOCK.findall(README))
    assert README.count("<!--") == sum(not block.runs for block in blocks())


@pytest.mark.parametrize("path", GUIDES, ids=guide)
def test_keys_exist(path):
    text = re.sub(r"^```python\n.*?^```$", "", path.read_text(), flags=re.M | re.S)
    named = set(re.findall(rf"(?<![\w./-])(?:--)?((?:{SECTIONS})\.[a-z_]+)(?![\w./-])", code(text)))
    named |= set(re.findall(r"--([a-z_]+\.[a-z_.]+)", code(text)))
    named = {name for name in named if not name.endswith((".sh", ".svg"))}
    assert named - set(leaves(RunConfig)) == set()
    assert path != ROOT / "README.md" or len(named) > 20


@pytest.mark.parametrize("path", GUIDES, ids=guide)
def test_commands_exist(path):
    named = set(re.findall(r"\bmegaswitch ([a-z][a-z-]*)", code(path.read_text())))
    assert named <= set(COMMANDS)
    assert path != ROOT / "README.md" or named == set(COMMANDS)


@pytest.mark.parametrize("path", GUIDES, ids=guide)
def test_files_and_links_exist(path):
    text = path.read_text()
    named = {ROOT / name for name in re.findall(rf"(?<![\w./])(?:{FOLDERS})/[\w./-]*\w", code(text))}
    named |= {path.parent / link for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", text)}
    missing = {str(p) for p in named if not p.exists() and not p.name.startswith("_native")}
    assert missing == set()


def test_anchors_exist():
    headings = re.findall(r"^#+ (.*)$", README, re.M)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    used = {a for path in GUIDES for a in re.findall(r"\]\((?:\.\./README\.md)?#([\w-]+)\)", path.read_text())}
    assert used and used <= anchors


def test_presets_are_as_the_table_says():
    rows = table_with("preset")
    assert {row[0].strip("`") for row in rows} == set(released())
    for row in rows:
        name = row[0].strip("`")
        facts, model = describe(name), ModelConfig(**presets()[name]["model"])
        blocks_of = f"{model.num_encoder_layers} + {model.num_decoder_layers}"
        sparse = f"{model.num_sparse_encoder_layers} + {model.num_sparse_decoder_layers}" if model.num_experts else ""
        pairs = [" / ".join(str(facts[key][s]) for s in facts[key]) for key in ("tokens_of_a_group", "capacity")]
        flops = f"{facts['flops_per_sequence']:.2e}".replace("e+0", "e").replace("e+", "e")
        total = f"{facts['parameters']['total']:,}"
        assert row[1:] == [total, str(model.d_model), blocks_of, sparse, *pairs, flops]
