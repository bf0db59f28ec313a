"""Tasks: pairs from text and from prepared corpora, the cursor of text, several in a row, mistakes named by line."""

import io
import json

import numpy as np
import pytest
import sentencepiece

from megaswitch.data.config import DataConfig
from megaswitch.data.opening import open_split
from megaswitch.data.prep.task import prepare_task
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError, MissingInputError, UserError

SENTENCE = "the quick brown fox jumps over a lazy dog while models read text and fill in what is missing"
WORDS = SENTENCE.split()
LENGTHS = {"encoder_length": 72, "decoder_length": 40}
PAIRS = [(" ".join(WORDS[i % 9 : i % 9 + 4]), " ".join(WORDS[i % 13 : i % 13 + 2]) + f" {i}") for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    stream = io.BytesIO()
    lines = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) + " 0123456789" for i in range(200)]
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=stream, vocab_size=45, minloglevel=2, **ids
    )
    path = tmp_path_factory.mktemp("model") / "m.model"
    path.write_bytes(stream.getvalue())
    return str(path)


@pytest.fixture
def tsv(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{inputs}\t{targets}\n" for inputs, targets in PAIRS) + "\n")
    return str(path)


def opened(train, model, split="train", *, seed=0, repeat=True, **config):
    data = DataConfig(**({"train": train, "split": "1,0,0", "tokenizer": model} | config))
    return open_split(data, split, vocab_size=160, seed=seed, repeat=repeat, **LENGTHS)


def texts(batch, tokenizer):
    rows = zip(batch.encoder_ids_BS, batch.targets_BT, strict=True)
    return [tuple(tokenizer.decode(ids[ids != 0]) for ids in pair) for pair in rows]


def test_every_pair_once_an_epoch_and_orders_differ(tsv, model):
    dataset, tokenizer = opened(f"task:{tsv}", model), Tokenizer(model)
    assert dataset.num_samples == 40
    epochs = [texts(dataset.batch(40 * e, 40), tokenizer) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(PAIRS) and epochs[0] != epochs[1]
    batch = dataset.batch(0, 8)
    np.testing.assert_array_equal(batch.decoder_ids_BT[:, 1:], batch.targets_BT[:, :-1])
    assert not batch.decoder_ids_BT[:, 0].any()
    np.testing.assert_array_equal(dataset.batch(50, 9).targets_BT[4], dataset.batch(54, 1).targets_BT[0])


def test_jsonl_and_prepared_are_the_same_task(tsv, model, tmp_path):
    lines = [json.dumps({"inputs": inputs, "targets": targets, "id": 3}) for inputs, targets in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    prepare_task(tsv, model, str(tmp_path / "prepared"))
    wanted = opened(f"task:{tsv}", model).batch(0, 50)
    for other in ("pairs.jsonl", "prepared"):
        found = opened(f"task:{tmp_path / other}", model).batch(0, 50)
        for ours, theirs in zip(wanted[:4], found[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert opened(f"task:{tmp_path}/prepared", "").fingerprint != opened(f"task:{tsv}", model).fingerprint


def test_prepared_pairs_share_rows(tsv, model, tmp_path):
    prepare_task(tsv, model, str(tmp_path / "prepared"))
    dataset, tokenizer = opened(f"task:{tmp_path}/prepared", "", packing=True), Tokenizer(model)
    assert dataset.num_samples < 40
    batch, found = dataset.batch(0, dataset.num_samples), []
    for row in range(dataset.num_samples):
        for number in range(1, int(batch.encoder_segments_BS[row].max()) + 1):
            inputs = batch.encoder_ids_BS[row, batch.encoder_segments_BS[row] == number]
            mine = batch.decoder_segments_BT[row] == number
            found.append((tokenizer.decode(inputs), tokenizer.decode(batch.targets_BT[row, mine])))
            assert batch.decoder_ids_BT[row, mine][0] == 0
    assert sorted(found) == sorted(PAIRS)
    with pytest.raises(DataError, match="prepare it with"):
        opened(f"task:{tsv}", model, packing=True)


def test_a_mixture_of_tasks_and_text(tsv, model, tmp_path, make_corpus):
    (tmp_path / "other.tsv").write_text("fox\tdog\n")
    facts = Tokenizer(model).facts
    corpus = make_corpus([[5] * 200], tokenizer=facts)
    dataset = opened(f"0.5:task:{tsv},0.25:task:{tmp_path}/other.tsv,0.25:{corpus}", model)
    batch = dataset.batch(0, 400)
    other = [pair == ("fox", "dog") for pair in texts(batch, Tokenizer(model))]
    assert abs(sum(other) - 100) < 1 and abs((batch.encoder_ids_BS[:, 0] == 5).sum() - 100) < 1


def test_long_pairs_are_cut(model, tmp_path):
    (tmp_path / "long.tsv").write_text("the " * 50 + "\t" + "fox " * 50 + "\n\tempty inputs\n")
    batch = opened(f"task:{tmp_path}/long.tsv", model, repeat=False).batch(0, 2)
    long = batch.encoder_ids_BS[batch.encoder_ids_BS.all(1)]
    assert long.shape == (1, 72) and long[0, -1] == 1
    assert (batch.encoder_ids_BS[~batch.encoder_ids_BS.all(1)][0, :2] == [1, 0]).all()


def test_splits_share_no_pair(tsv, model):
    found = {}
    for split in ("train", "valid"):
        config = DataConfig(train=f"task:{tsv}", split="0.75,0.25,0", tokenizer=model)
        dataset = open_split(config, split, vocab_size=160, seed=0, repeat=False, **LENGTHS)
        found[split] = texts(dataset.batch(0, dataset.num_samples), Tokenizer(model))
    assert (len(found["train"]), len(found["valid"])) == (30, 10)
    assert sorted(found["train"] + found["valid"]) == sorted(PAIRS)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tsv", b"a\tb\n\nno tab\n", r"a\.tsv:3 is no pair"),
        ("a.tsv", b"a\tb\tc\n", r"a\.tsv:1 is no pair"),
        ("a.tsv", b"a\t\xff\n", r"a\.tsv:1 is no pair in UTF-8"),
        ("a.jsonl", b'{"inputs": "a"}\n', r"a\.jsonl:1 is no pair"),
        ("a.jsonl", b'{"inputs": "a", "targets": 3}\n', r"a\.jsonl:1 is no pair"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1 is no pair"),
        ("a.tsv", b"\n", "has no documents"),
    ],
)
def test_mistakes_are_named_by_line(name, content, says, model, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        opened(f"task:{tmp_path / name}", model)


def test_what_is_missing_is_said(model, tmp_path, make_corpus, tsv):
    with pytest.raises(MissingInputError, match=r"gone\.tsv cannot be read"):
        opened(f"task:{tmp_path}/gone.tsv", model)
    with pytest.raises(DataError, match="document 0 has 1 sequences"):
        opened(f"task:{make_corpus([[5, 6]], tokenizer=Tokenizer(model).facts)}", model)
    with pytest.raises(UserError, match=r"set data\.tokenizer"):
        opened(f"task:{tsv}", "")
