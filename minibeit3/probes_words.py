"""Masked words of captions: with the right picture, a wrong one, none, and at best.

At evaluation every hidden word is <mask>, and the picture is whole. Legend: B samples, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from minibeit3.batches import generator_of
from minibeit3.data.images import to_model
from minibeit3.data.sample import Sample
from minibeit3.data.scene_text import NUMBERS
from minibeit3.data.scene_words import HIDDEN, word_posterior
from minibeit3.data.scenes import SHAPES, SIZES, from_dict
from minibeit3.masking import PAIR_TEXT_RATIO, mask_text, replace_all
from minibeit3.objective import MaskedBatch, MaskedDataModel
from minibeit3.probes_score import Score, derangement, one_of, score
from minibeit3.text_tokenizer import TextTokenizer

TEXT_LENGTH = 32  # as in pretraining
PICTURES = ("right", "shuffled", "blank", "none")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "colour": SHAPES.colours,
    "shape": (*SHAPES.plurals, *SHAPES.plurals.values()),
    "size": SIZES,
    "relation": ("left", "right", "above", "below"),
    "count": NUMBERS,
}


class Hidden(NamedTuple):
    """One text per sample: input ids, real, hidden, ids before hiding; all (B, T)."""

    text: Tensor
    real: Tensor
    hidden: Tensor
    words: Tensor


def hide_words(
    texts: Sequence[str], tokenizer: TextTokenizer, ratio: float, seed: int, length: int
) -> Hidden:
    """A share of each text as <mask>, the same for the same texts and seed."""
    words, real = tokenizer.batch(texts, length)
    g, ids = generator_of(seed, 0), tokenizer
    text, hidden = mask_text(words, real, ratio, ids.mask_id, ids.vocab_size, g, replace_all)
    return Hidden(text, real, hidden, words)


def one_text(samples: Sequence[Sample], seed: int) -> list[str]:
    """One text of every sample, drawn by the seed."""
    g = generator_of(seed, 1)
    return [s.texts[int(torch.randint(len(s.texts), (), generator=g))] for s in samples]


def pictures(samples: Sequence[Sample], size: int) -> Tensor:
    """The samples' images as the model takes them, float (B, 3, size, size).

    Raises ValueError that names the samples without one.
    """
    if missing := [sample.key for sample in samples if sample.image is None]:
        raise ValueError(f"samples without a picture: {missing[:3]}")
    return torch.cat([to_model(cast(Tensor, sample.image)[None], size) for sample in samples])


def check_eval(model: MaskedDataModel) -> torch.device:
    """The model's device; ValueError in train mode, where stochastic depth blurs every figure."""
    if model.training:
        raise ValueError("the model is in train mode: call model.eval() first")
    return next(model.parameters()).device


@torch.no_grad()
def masked_words(
    model: MaskedDataModel,
    samples: Sequence[Sample],
    tokenizer: TextTokenizer,
    ratio: float = PAIR_TEXT_RATIO,
    picture: str = "right",
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Score]:
    """Accuracy on the hidden words of captions, by word class.

    picture: "right"; "shuffled" = another sample's; "blank" = plain mid-grey; "none" = the text
    goes through the language expert alone. The hidden places do not depend on it.
    Keys: "all"; for the shapes world also its CLASSES, "function" (the other words) and "content"
    (all but function words).
    Raises ValueError for another `picture`, a model in train mode, samples without picture.
    """
    one_of("picture", picture, PICTURES)
    device, config = check_eval(model), model.backbone.config
    length = min(TEXT_LENGTH, config.max_text_length)
    found = hide_words(one_text(samples, seed), tokenizer, ratio, seed, length)
    image = pictures(samples, config.image_size)
    if picture == "shuffled":
        image = image[derangement(len(image), generator_of(seed, 2))]
    elif picture == "blank":
        image = torch.zeros_like(image)
    guessed = []
    for rows in torch.arange(len(samples)).split(batch_size):
        text, real, hidden, words = (part[rows] for part in found)
        seen = None if picture == "none" else image[rows]
        pairs = 0 if seen is None else len(rows)
        batch = MaskedBatch(seen, None, None, text, real, hidden, words, pairs).to(device)
        guess = model(batch)[1]
        guessed.append((guess.logits.argmax(-1) == guess.targets).cpu())
    return by_class(torch.cat(guessed), samples, found, tokenizer)


def word_ceiling(
    samples: Sequence[Sample],
    tokenizer: TextTokenizer,
    ratio: float = PAIR_TEXT_RATIO,
    seed: int = 0,
) -> dict[str, dict[str, Score]]:
    """The best that can be expected at the places that `masked_words` hides, by word class.

    Keys: "seen" = largest exact posterior given the scene and the visible words; "blind" = given
    the visible words alone; "seen_guess" = how often the best guess is right here, which differs
    from "seen" by chance, and where a split tells captions by another rule than training.
    Raises ValueError for captions outside the shapes world, and for words of several pieces: the
    number of pieces would tell the model what the enumeration does not know. See `exact`.
    """
    texts = one_text(samples, seed)
    found = hide_words(texts, tokenizer, ratio, seed, TEXT_LENGTH)
    chances: dict[str, list[float]] = {"seen": [], "blind": [], "seen_guess": []}
    for sample, text, hidden in zip(samples, texts, found.hidden[:, 1:], strict=True):
        if not exact(sample, tokenizer):
            raise ValueError(f"{text!r} has no exact ceiling: keep the samples that are `exact`")
        words = text.split()
        at = hidden.nonzero().flatten().tolist()
        shown = " ".join(HIDDEN if place in at else word for place, word in enumerate(words))
        seen = word_posterior(shown, from_dict(cast(Mapping[str, Any], sample.info["scene"])))
        chances["seen"] += [max(place.values()) for place in seen]
        chances["blind"] += [max(place.values()) for place in word_posterior(shown)]
        best = [max(place, key=lambda word: place[word]) for place in seen]
        chances["seen_guess"] += [
            float(word == words[place]) for word, place in zip(best, at, strict=True)
        ]
    return {
        name: by_class(torch.tensor(values), samples, found, tokenizer)
        for name, values in chances.items()
    }


def exact(sample: Sample, tokenizer: TextTokenizer) -> bool:
    """True when words are pieces in every caption that the visible length allows.

    "shapes" is two pieces, so captions that count bare shapes are left out.
    """
    words = [word for text in sample.texts for word in text.split()]
    single = all(len(tokenizer.token_ids(word)) == 1 for word in set(words))
    return _of_shapes(sample) and single and not {SHAPES.noun, SHAPES.nouns} & set(words)


def by_class(
    right: Tensor, samples: Sequence[Sample], found: Hidden, tokenizer: TextTokenizer
) -> dict[str, Score]:
    """Scores of all places, and by word class where all samples are of the shapes world.

    right: bool or float (n,), over the hidden places in reading order.
    """
    row = torch.arange(len(samples))[:, None].expand_as(found.hidden)[found.hidden]
    scores = {"all": score(right, row)}
    if not all(map(_of_shapes, samples)):
        return scores
    ids = found.words[found.hidden].tolist()
    names = [_class_of(tokenizer.piece(i).removeprefix("▁")) for i in ids]
    for name in (*CLASSES, "function", "content"):
        at = torch.tensor([n == name or (name == "content" and n != "function") for n in names])
        if at.any():
            scores[name] = score(right[at], row[at])
    return scores


def _class_of(word: str) -> str:
    return next((name for name, words in CLASSES.items() if word in words), "function")


def _of_shapes(sample: Sample) -> bool:
    scene = sample.info.get("scene")
    return isinstance(scene, Mapping) and scene["world"] == SHAPES.name
