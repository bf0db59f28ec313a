"""Bad input through the command: one clear error, the exit code of its kind, and nothing half written."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from train.corpus import MODEL_ARGUMENTS as MODEL
from train.corpus import write_corpus

from megaswitch.cli import main
from megaswitch.data.layout import dtype_for
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter

RUN = ["--train.steps=2", "--train.global_batch=4", "--run.threads=1", "--run.device=cpu", "--log.tensorboard=false"]


@pytest.fixture
def attempt(tmp_path, capsys):
    """Trains with more arguments; gives the exit code and what was said on standard error."""

    def run(*more: str, corpus: Path | None = None) -> tuple[int, str]:
        prefix = corpus or write_corpus(tmp_path / "corpus")
        where = [f"--run.dir={tmp_path / 'run'}", f"--data.train={prefix}"]
        code = main(["train", *MODEL, *RUN, *where, *more])
        return code, capsys.readouterr().err

    return run


def nothing_written(tmp_path: Path) -> bool:
    return not (tmp_path / "run").exists()


def test_the_arguments_work(attempt, tmp_path):
    assert attempt()[0] == 0
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").exists()


@pytest.mark.parametrize("ending", [".idx", ".bin"])
def test_missing_file(attempt, tmp_path, ending):
    corpus = write_corpus(tmp_path / "broken")
    Path(f"{corpus}{ending}").unlink()
    code, said = attempt(corpus=corpus)
    assert code == 66
    assert f"broken{ending}" in said
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("ending", [".idx", ".bin"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_truncated_file(attempt, tmp_path, ending, kept):
    corpus = write_corpus(tmp_path / "broken")
    file = Path(f"{corpus}{ending}")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    code, said = attempt(corpus=corpus)
    assert code == 65
    assert f"broken{ending}" in said
    assert nothing_written(tmp_path)


def test_empty_corpus(attempt, tmp_path):
    prefix = tmp_path / "empty"
    with IndexedWriter(str(prefix), dtype_for(160)) as writer:
        writer.finish(TokenizerFacts("f" * 32, 60))
    code, said = attempt(corpus=prefix)
    assert code == 65
    assert "empty" in said
    assert nothing_written(tmp_path)


def test_vocabulary_larger_than_the_models(attempt, tmp_path):
    code, said = attempt("--model.vocab_size=159")
    assert code == 64
    assert "model.vocab_size" in said and "160" in said
    assert nothing_written(tmp_path)


def test_an_id_outside_the_vocabulary_is_found_in_training(attempt, tmp_path):
    prefix = tmp_path / "large"
    with IndexedWriter(str(prefix), np.dtype(np.uint16)) as writer:
        for _ in range(40):
            writer.add_document([5, 6, 7, 999] * 10)
        writer.finish(TokenizerFacts("f" * 32, 60))
    code, said = attempt(corpus=prefix)
    assert code == 65
    assert "999" in said and "document" in said
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--layout.tp=2"], ["layout", "process"]),
        (["--layout.pp=3"], ["layout", "process"]),
        (["--layout.ep=2"], ["layout.ep"]),
        (["--layout.tp=0"], ["layout.tp"]),
        (["--model.num_experts=0", "--model.group_sequences=0"], ["model.group_sequences"]),
        (["--model.group_sequences=3"], ["train.micro_batch", "model.group_sequences"]),
        (["--train.global_batch=3", "--train.micro_batch=2"], ["train.global_batch"]),
        (["--model.decoder_length=3"], ["model.decoder_length", "5"]),
        (["--model.dropout=1.5", "--model.jitter=-1", "--train.steps=0"], ["dropout", "jitter", "train.steps"]),
        (["--model.num_expert=4"], ["model.num_expert", "model.num_experts"]),
        (["--modle.d_ff=4"], ["modle"]),
        (["--train.steps=many"], ["train.steps", "many"]),
        (["--model.preset=switch_tinny"], ["switch_tinny", "switch_tiny"]),
    ],
)
def test_configuration(attempt, tmp_path, arguments, words):
    code, said = attempt(*arguments)
    assert code == 64
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    "world,arguments,words",
    [
        (3, ["--layout.tp=3"], ["layout.tp", "model.num_heads"]),
        (3, ["--layout.ep=3"], ["layout.ep", "model.num_experts"]),
        (8, ["--layout.pp=8", "--train.global_batch=8"], ["layout.pp", "stage empty"]),
        (6, ["--layout.tp=2", "--layout.pp=2"], ["6 processes"]),
        (4, ["--layout.tp=4", "--layout.etp=2"], ["layout.etp"]),
        (8, ["--train.global_batch=4"], ["train.global_batch"]),
    ],
)
def test_layout(capsys, world, arguments, words):
    assert main(["check-config", "--world", str(world), *MODEL, *RUN, *arguments]) == 64
    said = capsys.readouterr().err
    for word in words:
        assert word in said


def test_all_problems_are_told_at_once(capsys):
    wrong = ["--layout.tp=3", "--layout.ep=3", "--train.global_batch=7", "--model.decoder_length=2"]
    assert main(["check-config", "--world", "6", *MODEL, *RUN, *wrong]) == 64
    said = capsys.readouterr().err
    for key in ("model.num_heads", "model.num_experts", "train.global_batch", "model.decoder_length"):
        assert key in said


def test_checkpoint_of_another_model(attempt, tmp_path):
    assert attempt()[0] == 0
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    code, said = attempt("--model.d_ff=32", "--train.steps=4")
    assert code == 65
    assert "model.d_ff: 24, now 32" in said
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


def test_checkpoint_of_other_data(attempt, tmp_path):
    assert attempt()[0] == 0
    other = write_corpus(tmp_path / "other", seed=1)
    code, said = attempt("--train.steps=4", corpus=other)
    assert code == 64
    assert "data_mismatch=accept" in said
    assert attempt("--train.steps=4", "--checkpoint.data_mismatch=accept", corpus=other)[0] == 0


def test_checkpoint_that_is_not_there(attempt, tmp_path):
    code, said = attempt(f"--checkpoint.resume={tmp_path / 'nowhere'}")
    assert code == 66
    assert "nowhere" in said


def test_a_fresh_start_does_not_mix_with_what_is_there(attempt):
    assert attempt()[0] == 0
    code, said = attempt("--checkpoint.resume=none")
    assert code == 64
    assert "run.dir" in said


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(attempt, tmp_path, caplog):
    assert attempt("--checkpoint.every=1")[0] == 0
    shard = tmp_path / "run" / "checkpoints" / "step-00000002" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with caplog.at_level("ERROR"):
        assert attempt("--train.steps=3")[0] == 0
    assert "step-00000002" in caplog.text
    shutil.rmtree(tmp_path / "run")


def test_a_file_where_the_run_folder_should_be(attempt, tmp_path):
    (tmp_path / "run").write_text("in the way")
    code, said = attempt()
    assert code == 73
    assert "run.dir" in said


def test_no_corpus(capsys, tmp_path):
    assert main(["train", *MODEL, *RUN, f"--run.dir={tmp_path / 'run'}"]) == 66
    assert "data.train" in capsys.readouterr().err
