"""The tokenizer: T5's special pieces, sentinels above the pieces, text that is no Unicode, files that are no models."""

import io
import unicodedata

import pytest
import sentencepiece

from megaswitch.data.tokenizer import Tokenizer, repair
from megaswitch.utils.errors import DataError, MissingInputError

SENTENCE = "the quick brown fox jumps over the lazy dog while a model reads text and fills in what is missing"
WORDS = SENTENCE.split()
LINES = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) for i in range(200)]


def trained(**settings):
    model = io.BytesIO()
    chosen = {"vocab_size": 40, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2} | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, **chosen)
    return model.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.model"
    path.write_bytes(trained())
    return Tokenizer(path)


def test_sizes_and_sentinels(tokenizer):
    assert (tokenizer.num_pieces, tokenizer.vocab_size) == (40, 140)
    assert (tokenizer.sentinel(0), tokenizer.sentinel(99)) == (139, 40)
    for number in (-1, 100):
        with pytest.raises(DataError, match="from 0 to 99"):
            tokenizer.sentinel(number)
    assert tokenizer.facts.vocab_size == 140 and tokenizer.facts.fingerprint == tokenizer.fingerprint


def test_text_comes_back(tokenizer):
    ids = tokenizer.encode("the lazy model")
    assert all(2 < i < 40 for i in ids) and tokenizer.decode(ids) == "the lazy model"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.encode_batch(["the fox", "", "a dog"]) == [tokenizer.encode(t) for t in ("the fox", "", "a dog")]


def test_sentinels_and_special_ids_are_rendered(tokenizer):
    ids = [*tokenizer.encode("the quick"), 139, *tokenizer.encode("fox"), 138, 40, 1, 0, 0]
    assert tokenizer.decode(ids) == "the quick <extra_id_0> fox <extra_id_1> <extra_id_99>"
    assert tokenizer.decode([1000, -5]) == "<id_1000> <id_-5>"


def test_masked_text(tokenizer):
    text = "the quick <extra_id_0> jumps over <extra_id_12>"
    ids = tokenizer.encode_masked(text)
    assert [i for i in ids if i >= 40] == [139, 127] and tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud800\udc00\udc00", "ok \x00 nul", "\ufeffbom", "e\u0301"])
def test_odd_text_does_not_crash(tokenizer, text):
    assert all(0 <= i < 40 for i in tokenizer.encode(text))


def test_lone_surrogates_are_refused_or_replaced(tokenizer):
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("the \ud800 fox", on_bad="refuse")
    assert tokenizer.encode("the \ud800 fox") == tokenizer.encode("the \ufffd fox")
    assert repair("a\ud800b") == "a\ufffdb"
    plain = "plain \U0001f600"
    assert repair(plain) is plain


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pad_id": -1, "unk_id": 0}, "other special pieces"),
        ({"bos_id": 3}, "other special pieces"),
        ({"user_defined_symbols": ["<extra_id_0>"]}, "sentinels among its pieces"),
        ({"user_defined_symbols": [f"<extra_id_{i}>" for i in range(100)], "vocab_size": 140}, "not as its last 100"),
    ],
)
def test_models_of_other_rules_are_refused(settings, says, tmp_path):
    (tmp_path / "m.model").write_bytes(trained(**settings))
    with pytest.raises(DataError, match=says):
        Tokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02cposix\nsystem\n"])
def test_files_that_are_no_models_are_refused(content, tmp_path):
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(DataError, match=r"m\.model is not a sentencepiece model"):
        Tokenizer(tmp_path / "m.model")


def test_missing_model(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.model cannot be read: No such file"):
        Tokenizer(tmp_path / "gone.model")


def with_pieces(model, pieces):
    """A serialized model with user-defined pieces behind its own, by the wire format of protocol buffers."""
    for piece in pieces:
        text = piece.encode()
        inner = b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\0\0" + b"\x18\x04"
        model += b"\x0a" + bytes([len(inner)]) + inner
    return model


@pytest.mark.parametrize("mark", ["", "\u2581"])
def test_a_model_that_holds_its_sentinels_as_mt5s_does(mark, tokenizer, tmp_path):
    inside = with_pieces(trained(), [f"{mark}<extra_id_{i}>" for i in reversed(range(100))])
    (tmp_path / "m.model").write_bytes(inside)
    other = Tokenizer(tmp_path / "m.model")
    assert (other.num_pieces, other.vocab_size) == (40, 140) and other.facts.vocab_size == tokenizer.vocab_size
    assert (other.sentinel(0), other.sentinel(99)) == (139, 40)
    masked = "the quick <extra_id_0> jumps over <extra_id_12>"
    assert other.encode_masked(masked) == tokenizer.encode_masked(masked)
    assert other.decode(other.encode_masked(masked)) == masked
    assert other.fingerprint != tokenizer.fingerprint


def test_arrays_hold_the_same_ids(tokenizer):
    texts = ["the fox", "", "a dog", "caf\u00e9 \ufb01ne \u2460", "  two  spaces \n and a line "]
    for threads in (1, 2):
        assert [ids.tolist() for ids in tokenizer.encode_arrays(texts, threads)] == tokenizer.encode_batch(texts)


def test_text_is_normalised_once_by_the_models_rule(tokenizer):
    """NFKC is sentencepiece's own; what NFKC makes of a text gives the same ids, and nothing is done before."""
    text = "\ufb01lls the m\u1d52del \uff41 \u2075"
    assert tokenizer.encode(text) == tokenizer.encode(unicodedata.normalize("NFKC", text))
    kept = "\u2028"  # NFKC leaves the line separator alone, sentencepiece's rule makes it a space
    assert tokenizer.encode(f"the{kept}fox") == tokenizer.encode("the fox")


def test_long_texts_are_encoded_in_parts_with_the_same_ids(tokenizer, monkeypatch):
    monkeypatch.setattr("megaswitch.data.tokenizer.LONGEST_AT_ONCE", 50)
    texts = [" ".join(LINES[:40]), "short", "\n".join(LINES[40:50]), " ".join(f"  {line} " for line in LINES[:9])]
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts)] == tokenizer.encode_batch(texts)
    word = "x" * 120  # no space to cut at: still all of it, in parts
    assert len(tokenizer.encode_arrays([word])[0]) >= len(tokenizer.encode(word))


def test_models_whose_pieces_span_spaces_are_not_cut(tmp_path, monkeypatch):
    (tmp_path / "m.model").write_bytes(trained(split_by_whitespace=False, vocab_size=60))
    tokenizer = Tokenizer(tmp_path / "m.model")
    monkeypatch.setattr("megaswitch.data.tokenizer.LONGEST_AT_ONCE", 50)
    text = " ".join(LINES[:40])
    assert tokenizer.encode_arrays([text])[0].tolist() == tokenizer.encode(text)
    assert not tokenizer._splits_at_spaces
