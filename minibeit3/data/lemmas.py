"""Words marked in their own example sentences: tagging, from WordNet's examples.

A word of a sentence is what stands between two spaces, punctuation and all; so the pieces of a
text tokenizer are those of its words, one after the other. Where the word that the sentence is an
example of cannot be found in it, inflected or not, the sentence is left out.
"""

import re
from collections.abc import Sequence
from functools import cache

from torch.utils.data import Dataset

from minibeit3.data.glosses import SPLITS, split_of, synsets
from minibeit3.data.sample import Sample

OUTSIDE, BEGINS, CONTINUES = 0, 1, 2
TAGS = ("outside", "begins", "continues")
ENDINGS = ("", "s", "es", "d", "ed", "ing")


class LemmaSentences(Dataset[Sample]):
    """Example sentences with the place of the word that they are given for.

    Sample: key "wordnet/<row>/<example>"; texts = (sentence,), info: words (the sentence, split at
    spaces), tags (one of 0 outside, 1 begins, 2 continues per word) and lemma, the word.
    Raises ValueError for an unknown split.
    """

    def __init__(self, split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
        self.items = _items(split)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        key, words, tags, lemma = self.items[index]
        info = {"words": words, "tags": tags, "lemma": lemma}
        return Sample(key=key, texts=(" ".join(words),), info=info)


@cache
def _items(split: str) -> tuple[tuple[str, tuple[str, ...], tuple[int, ...], str], ...]:
    """Key, words, tags and lemma of every sentence of a split."""
    found = []
    for row, synset in enumerate(synsets()):
        for number, sentence in enumerate(synset.sentences()):
            if split_of(sentence) != split:
                continue
            words, plain = tuple(sentence.split()), sentence.lower()
            for lemma in synset.lemmas.split(", "):
                # Whatever its ending, all but the last letter of the first word stays.
                if lemma.split()[0][:-1].lower() in plain:
                    tags = tags_of(words, lemma)
                    if BEGINS in tags and OUTSIDE in tags:
                        found.append((f"wordnet/{row}/{number}", words, tags, lemma))
                        break
    return tuple(found)


def tags_of(words: Sequence[str], lemma: str) -> tuple[int, ...]:
    """BIO tags of every place where the lemma stands, its last word with a regular ending or none.

    A lemma of several words has to stand in one piece.
    """
    bare = [re.sub(r"^\W+|\W+$", "", word).lower() for word in words]
    parts = lemma.lower().split()
    stems = (parts[-1], parts[-1].removesuffix("e"), re.sub(r"y$", "i", parts[-1]))
    last = {stem + ending for stem in stems[1:] for ending in ENDINGS[1:]}
    last |= {parts[-1] + ending for ending in ENDINGS}
    tags = [OUTSIDE] * len(words)
    for at in range(len(words) - len(parts) + 1):
        if bare[at : at + len(parts) - 1] == parts[:-1] and bare[at + len(parts) - 1] in last:
            tags[at : at + len(parts)] = [BEGINS] + [CONTINUES] * (len(parts) - 1)
    return tuple(tags)
