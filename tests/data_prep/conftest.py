"""A small vocabulary and a way to run the commands as a user does, in this process."""

import orjson
import pytest

from megaswitch.data.prep.documents import Reader, Reading
from megaswitch.data.prep.inputs import find
from megaswitch.data.prep.records import Slice
from megaswitch.data.prep.report import Report, Summary
from megaswitch.data.prep.sampling import sentences
from megaswitch.data.prep.train_tokenizer import TrainingOptions, train

TEXT = """
Return the index of the first element in the list that is equal to the given value.
Raise a value error when no such element can be found between start and stop.
The encoder reads a sequence of tokens, and the decoder writes what was masked, one span after another.
A tensor holds numbers of a single type in one or more dimensions; views share the storage of their base.
Open the file, read every line, close it again, and tell the caller how many lines there were!
When the process is interrupted, temporary files are removed and nothing is left behind.
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory, lines_of_text):
    """Path of a `.model` of 120 pieces (220 ids)."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(train(sentences([TEXT, *lines_of_text], 1000), TrainingOptions(120, character_coverage=1.0)))
    return str(path)


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes texts, one JSON object a line, and returns the path."""

    def write(texts, name="input.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
        return path

    return write


@pytest.fixture(scope="session")
def lines_of_text():
    """Many different documents of real words; a tuple, so that no test changes another's."""
    words = TEXT.split()
    return tuple(" ".join(words[(i * k) % len(words)] for k in range(1, 5 + i % 17)) for i in range(3000))


@pytest.fixture
def read():
    """Reads inputs as a command does and returns their documents and the joined report."""

    def read_all(*inputs, chosen="", **options):
        summary, texts = Summary(), []
        reading = Reading(**options)
        for source in find([str(item) for item in inputs], chosen):
            report, part = Report(), Slice(source)
            texts += [text for block in Reader(reading, report).texts(part) for text in block]
            summary.add((part,), report)
        return texts, summary

    return read_all
