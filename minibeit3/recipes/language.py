"""Language encoder: the subject of WordNet's definitions, and whose example a sentence is."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from minibeit3.data.glosses import Glosses
from minibeit3.data.lemmas import BEGINS, OUTSIDE, TAGS, LemmaSentences
from minibeit3.data.sample import Sample
from minibeit3.metrics import span_f1, top1
from minibeit3.modes import TextClassifier, TokenTagger
from minibeit3.recipe import TEXT_LENGTH, Figures, Recipe, Setup, first, in_batches
from minibeit3.references_linear import tfidf_svm
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=1000, batch_size=64, lr=1e-3, warmup=100, layer_decay=0.9, save_every=250, log_every=20
)
HIDE = 0.15  # share of the words that a training text loses, so that few texts last longer
IGNORED = -100  # label of a token that stands for no word or not for its beginning


class Defined(NamedTuple):
    """text: int64 (B, T). real: bool (B, T), True = a token. labels: int64 (B,)."""

    text: Tensor
    real: Tensor
    labels: Tensor


class Tagged(NamedTuple):
    """text: int64 (B, T). real: bool (B, T), True = a token. tags: int64 (B, T), -100 = ignore."""

    text: Tensor
    real: Tensor
    tags: Tensor


def glosses(setup: Setup) -> Recipe:
    """Which of eight subjects (animal, plant, food, ...) a definition is of; labels=4000 is few."""
    training = Glosses("train", 8)
    names, chosen = training.names, setup.choose(training)

    def evaluate(model: TextClassifier, limit: int) -> Figures:
        samples = first(Glosses(setup.split, 8), limit)
        batches = in_batches(model, samples, lambda part: _words(part, setup))
        told = torch.cat([model(*words).argmax(dim=1).cpu() for _, words in batches])
        return {"top1": top1(told, labels_of(samples, len(names))).accuracy}

    def references(limit: int) -> Figures:
        known = first(chosen, len(chosen))
        asked = first(Glosses(setup.split, 8), limit)
        labels, truth = (labels_of(samples, len(names)) for samples in (known, asked))
        guesses = tfidf_svm(_texts(known), labels.tolist(), _texts(asked))
        return {
            "majority/top1": (truth == labels.mode().values).float().mean().item(),
            "TF-IDF, linear/top1": top1(torch.tensor(guesses), truth).accuracy,
        }

    return Recipe(
        name="glosses",
        mode="language",
        about="WordNet's definitions of concrete nouns with their subject",
        build=lambda backbone, g: TextClassifier(backbone, len(names), g),
        samples=chosen,
        collate=lambda samples, g: defined_batch(samples, setup, len(names), g),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        muon=True,
        head_lr=10,
        labels=names,
        goals={"top1": 0.90},
        controls={"split": ("val", "test")},
    )


def lemma_tagging(setup: Setup) -> Recipe:
    """The word that an example sentence is given for, marked by BIO tags; F1 of whole spans.

    Neither the paper nor the released code tags words.
    """
    chosen = setup.choose(LemmaSentences("train"))

    def evaluate(model: TokenTagger, limit: int) -> Figures:
        samples = first(LemmaSentences(setup.split), limit)
        told = []
        for part, batch in in_batches(model, samples, lambda part: tagged_batch(part, setup)):
            best = model(batch.text, batch.real).argmax(dim=-1).cpu()
            told += tags_of_words(best, batch.tags.cpu(), part)
        return {"F1": span_f1(told, [_tags(sample) for sample in samples]).accuracy}

    def references(limit: int) -> Figures:
        samples = first(LemmaSentences(setup.split), limit)
        often = Counter(w.lower() for sample in first(chosen, len(chosen)) for w in _split(sample))
        rules: dict[str, Callable[[str], float]] = {
            "rarest word": lambda word: -often[word.lower()],
            "longest word": len,
        }
        return {
            f"{name}/F1": span_f1(
                [best_word(_split(sample), rule) for sample in samples],
                [_tags(sample) for sample in samples],
            ).accuracy
            for name, rule in rules.items()
        }

    return Recipe(
        name="lemma-tagging",
        mode="language",
        about="WordNet's example sentences with the word that each is given for",
        build=lambda backbone, g: TokenTagger(backbone, len(TAGS), g),
        samples=chosen,
        collate=lambda samples, g: hide_some(tagged_batch(samples, setup), setup.tokenizer, g),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        muon=True,
        head_lr=10,
        labels=TAGS,
        controls={"split": ("val", "test")},
    )


def defined_batch(
    samples: Sequence[Sample], setup: Setup, classes: int, generator: torch.Generator
) -> Defined:
    """Texts with some words hidden, and their classes."""
    batch = Defined(*_words(samples, setup), labels_of(samples, classes))
    return hide_some(batch, setup.tokenizer, generator)


def hide_some(batch: Any, tokenizer: TextTokenizer, generator: torch.Generator) -> Any:
    """The batch with a share `HIDE` of its tokens, but never <s> and </s>, as <mask>.

    Departure: the released fine-tuning hides words in captioning alone.
    """
    text = batch.text
    words = batch.real & (text != tokenizer.bos_id) & (text != tokenizer.eos_id)
    hidden = words & (torch.rand(text.shape, generator=generator) < HIDE)
    return batch._replace(text=text.masked_fill(hidden, tokenizer.mask_id))


def labels_of(samples: Sequence[Sample], classes: int) -> Tensor:
    """int64 (B,). ValueError for a sample without a label, or one beyond the head's classes."""
    for sample in samples:
        if sample.label is None or not 0 <= sample.label < classes:
            raise ValueError(f"{sample.key}: label {sample.label}, the head has 0 .. {classes - 1}")
    return torch.tensor([sample.label for sample in samples])


def tagged_batch(samples: Sequence[Sample], setup: Setup) -> Tagged:
    """Sentences, the tag of each word at its first piece.

    ValueError for a sample without one tag per word.
    """
    rows, tokenizer = [], setup.tokenizer
    most = min(TEXT_LENGTH, setup.config.max_text_length) - 2
    for sample in samples:
        words, tags = _split(sample), _tags(sample)
        if len(words) != len(tags):
            raise ValueError(f"{sample.key}: {len(tags)} tags for {len(words)} words")
        pieces = [tokenizer.token_ids(word) or [tokenizer.unk_id] for word in words]
        ids = [i for piece in pieces for i in piece][:most]
        marked = [
            tag if place == 0 else IGNORED
            for piece, tag in zip(pieces, tags, strict=True)
            for place in range(len(piece))
        ][:most]
        rows.append(([tokenizer.bos_id, *ids, tokenizer.eos_id], [IGNORED, *marked, IGNORED]))
    width = max(len(ids) for ids, _ in rows)
    text = torch.tensor([ids + [tokenizer.pad_id] * (width - len(ids)) for ids, _ in rows])
    tags = torch.tensor([marked + [IGNORED] * (width - len(marked)) for _, marked in rows])
    lengths = torch.tensor([[len(ids)] for ids, _ in rows])
    return Tagged(text, torch.arange(width) < lengths, tags)


def tags_of_words(said: Tensor, places: Tensor, samples: Sequence[Sample]) -> list[list[int]]:
    """One tag per word from tags of tokens, int64 (B, T); words cut off are outside.

    places: `Tagged.tags`, not -100 where a word begins.
    """
    found = []
    for row, at, sample in zip(said, places != IGNORED, samples, strict=True):
        tags = row[at].tolist()
        found.append(tags + [OUTSIDE] * (len(_split(sample)) - len(tags)))
    return found


def best_word(words: Sequence[str], rule: Callable[[str], float]) -> list[int]:
    """Tags that mark the first word for which the rule is highest."""
    best = max(range(len(words)), key=lambda i: rule(words[i]))
    return [BEGINS if i == best else OUTSIDE for i in range(len(words))]


def _words(samples: Sequence[Sample], setup: Setup) -> tuple[Tensor, Tensor]:
    return setup.words(_texts(samples))


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [sample.texts[0] for sample in samples]


def _split(sample: Sample) -> Sequence[str]:
    return cast(Sequence[str], sample.info["words"])


def _tags(sample: Sample) -> Sequence[int]:
    return cast(Sequence[int], sample.info["tags"])
