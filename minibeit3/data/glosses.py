"""WordNet 3.0 as text: definitions with their subject field as label, and unlabelled sentences.

The language-encoder lesson pretrains on the unlabelled stream and fine-tunes on few labelled
definitions. The split of a text is a hash of the text itself, so equal definitions of different
words never stand on both sides, and nothing depends on the order of the file.
"""

import hashlib
import lzma
from collections.abc import Container
from functools import cache
from typing import NamedTuple

from torch.utils.data import Dataset

from minibeit3.data.paths import data_root
from minibeit3.data.sample import Sample

SPLITS = ("train", "val", "test")
CONCRETE = (
    "noun.animal",
    "noun.plant",
    "noun.food",
    "noun.artifact",
    "noun.person",
    "noun.body",
    "noun.location",
    "noun.substance",
)


class Synset(NamedTuple):
    """One meaning: lexicographer file (class), its words, definition, example sentences."""

    lexname: str
    lemmas: str
    gloss: str
    examples: str

    def sentences(self) -> list[str]:
        """The example sentences, often none."""
        return self.examples.split(" | ") if self.examples else []


@cache
def synsets() -> tuple[Synset, ...]:
    """All 117,659 synsets of WordNet 3.0 in file order."""
    text = lzma.decompress((data_root() / "text/wordnet.tsv.xz").read_bytes()).decode("utf-8")
    return tuple(Synset(*line.split("\t")) for line in text.splitlines())


def class_names(labels: int) -> tuple[str, ...]:
    """The 8 concrete noun classes, or the 25 noun classes, in label order.

    Raises ValueError for another number.
    """
    if labels == 8:
        return CONCRETE
    if labels == 25:
        found = {s.lexname for s in synsets() if s.lexname.startswith("noun.")} - {"noun.Tops"}
        return tuple(sorted(found))
    raise ValueError(f"labels is {labels}, must be 8 (concrete nouns) or 25 (all nouns)")


def split_of(text: str) -> str:
    """Split of a text by its SHA-256: 90 % train, 5 % val, 5 % test."""
    place = _rank(text) % 20
    return SPLITS[place + 1] if place < 2 else "train"


class Glosses(Dataset[Sample]):
    """Definitions with the class of their word.

    labels: 8 or 25 classes, named by `class_names`. labelled: only so many items, the first in hash
    order, so that smaller sets are parts of larger ones; None takes all.
    Sample: key "wordnet/<row>"; texts = (definition,); label; info has lexname and lemmas.
    Raises ValueError for an unknown split, another number of labels, or more items than there are.
    """

    def __init__(self, split: str = "train", labels: int = 8, labelled: int | None = None) -> None:
        _check_split(split)
        self.names = class_names(labels)
        wanted = {name: index for index, name in enumerate(self.names)}
        rows = [row for row, s in enumerate(synsets()) if s.lexname in wanted]
        rows = [row for row in rows if split_of(synsets()[row].gloss) == split]
        if labelled is not None:
            if not 0 < labelled <= len(rows):
                raise ValueError(f"labelled is {labelled}, must be 1..{len(rows)} for {split!r}")
            rows = sorted(rows, key=lambda row: (_rank(synsets()[row].gloss), row))[:labelled]
        self.items = [(row, wanted[synsets()[row].lexname]) for row in rows]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        row, label = self.items[index]
        synset = synsets()[row]
        info = {"lexname": synset.lexname, "lemmas": synset.lemmas}
        return Sample(key=f"wordnet/{row}", texts=(synset.gloss,), label=label, info=info)


class PlainTexts(Dataset[Sample]):
    """The unlabelled stream: every definition, and with `examples` every example sentence.

    The train split holds no text of the val and test splits of `Glosses`. without: texts to leave
    out, as the glosses of held-out emoji.
    Sample: key "wordnet/<row>" or "wordnet/<row>/<example>"; texts of length one; no label.
    Raises ValueError for an unknown split.
    """

    def __init__(
        self, split: str = "train", examples: bool = True, without: Container[str] = ()
    ) -> None:
        _check_split(split)
        self.items: list[tuple[str, str]] = []
        for row, synset in enumerate(synsets()):
            texts = {f"wordnet/{row}": synset.gloss}
            if examples:
                texts |= {f"wordnet/{row}/{i}": text for i, text in enumerate(synset.sentences())}
            chosen = (item for item in texts.items() if split_of(item[1]) == split)
            self.items += [item for item in chosen if item[1] not in without]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        key, text = self.items[index]
        return Sample(key=key, texts=(text,))


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
