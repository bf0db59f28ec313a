"""The configuration of the data: which corpora, how they are split, how spans are masked. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Keys `data.*` of a run. Lengths, vocabulary and seed belong to the model and the run and are not repeated
    here."""

    train: str = ""
    """Training corpora: one prefix (the path of `P.bin` and `P.idx` without the ending), or weights and prefixes,
    `0.7:P1,0.3:P2`. Weights need not sum to one; with `temperature` there are none. `@FILE` takes the same entries
    from a file, one a line, paths beginning in its folder. `task:FILE.tsv`, `task:FILE.jsonl` and `task:PREFIX` are
    pairs of inputs and targets instead of text."""

    valid: str = ""
    """Validation corpora, written as `train` is; all their documents are used. `en=P1,de=P2` gives each name a
    curve of its own. Empty: `split` sets documents of `train` apart. An evaluation passes over every sample once,
    so weights matter for training only."""

    temperature: float = 0.0
    """Weights by size: a corpus of n samples is drawn with a probability in proportion to n^(1/T). 1 draws all alike by
    size, 3.3 is mT5's; 0 takes the weights from `train`."""

    split: str = "0.98,0.01,0.01"
    """Weights of train, validation and test over the documents of `train`. The test part always comes from here; the
    validation part only while `valid` is empty (else training takes its documents too). Which document falls where
    depends on its number alone, never on a seed; every part with a weight above zero gets at least one document where
    there are enough of them."""

    tokenizer: str = ""
    """Path of the sentencepiece `.model`. Empty: the vocabulary is taken from the `.json` beside each corpus."""

    noise_density: float = 0.15
    """Share of the tokens that span corruption masks, above 0 and below 1 (T5: 0.15)."""

    mean_span_length: float = 3.0
    """Mean length of a masked span in tokens, 1 or more (T5: 3)."""

    mode_tokens: str = ""
    """Ids that train.objective=ul2 puts in front of the inputs, of its regular, sequential and extreme denoisers:
    `35,36,37`. Empty: none."""

    packing: bool = False
    """Whether short documents share a row, each corrupted by itself and seen by itself alone, instead of being
    joined into one text that is cut anywhere. For span corruption and tasks."""

    index_dir: str = ""
    """Folder in which the indexes of large corpora are kept, once a node. Empty: `PREFIX.index` beside each corpus."""

    threads: int = 0
    """Threads that make samples; 0 takes up to four, as there are cores."""
