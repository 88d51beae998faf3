"""Binding: which of two captions of the same words belongs to which picture (Winoground).

The same pairs for both encoders that read images and texts: the fusion encoder, whose words and
patches meet, and the dual encoder, which compares two finished vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from minibeit3.data.sample import Sample
from minibeit3.data.scene_pairs import BindingPairs
from minibeit3.masking import mask_differences
from minibeit3.modes import CaptionScorer, ImageTextRetriever
from minibeit3.recipe import SCENES, Figures, Recipe, Setup, by_kind, first, in_batches
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=2000, batch_size=8, lr=1e-3, warmup=200, layer_decay=0.9, save_every=500, log_every=20
)
CHANCE = {"chance/text": 1 / 4, "chance/image": 1 / 4, "chance/group": 1 / 6}


class Hidden(NamedTuple):
    """Captions beside pictures, hidden where the two captions of an item differ.

    image: float (B, 3, S, S). text: int64 (B, T). real, hidden: bool (B, T), True = a token,
    True = to be guessed.
    """

    image: Tensor
    text: Tensor
    real: Tensor
    hidden: Tensor


class Captioned(NamedTuple):
    """Both pictures of every item with their own captions.

    image: float (2 B, 3, S, S). text: int64 (2 B, T). real: bool (2 B, T). ids: int64 (2 B,), the
    same for the same caption.
    """

    image: Tensor
    text: Tensor
    real: Tensor
    ids: Tensor


def binding(setup: Setup) -> Recipe:
    """Fusion encoder: how likely is this caption beside this picture?"""
    return Recipe(
        name="binding",
        mode="fusion",
        about="two scenes and two captions of the same words, all four combinations",
        build=lambda backbone, g: CaptionScorer(backbone, setup.tokenizer.mask_id, g),
        samples=setup.choose(BindingPairs("train", SCENES, setup.config.image_size)),
        collate=lambda samples, _: own(samples, setup),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=lambda model, limit: binding_figures(model, setup, limit, fused_scores),
        references=lambda _: dict(CHANCE),
        plan=replace(PLAN, batch_size=16),
        muon=True,
        goals={"group": 0.80},
        controls={"blind": ("image",), "split": ("val", "test")},
    )


def binding_dual(setup: Setup) -> Recipe:
    """Dual encoder, trained on the same pairs: both pictures and captions of an item in a batch."""
    return Recipe(
        name="binding-dual",
        mode="dual",
        about="two scenes and two captions of the same words, each the other's hard negative",
        build=lambda backbone, g: ImageTextRetriever(backbone, g),
        samples=setup.choose(BindingPairs("train", SCENES, setup.config.image_size)),
        collate=lambda samples, _: captioned(samples, setup),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=lambda model, limit: binding_figures(model, setup, limit, dual_scores),
        references=lambda _: dict(CHANCE),
        plan=PLAN,
        muon=True,
        head_lr=10,
        controls={"split": ("val", "test")},
    )


def own(samples: Sequence[Sample], setup: Setup) -> Hidden:
    """Both pictures of every item with their own captions, two rows each."""
    image, text, real, _ = captioned(samples, setup)
    other = rearrange(text, "(B two) T -> B two T", two=2).flip(1).flatten(0, 1)
    _, hidden = mask_differences(text, other, real, setup.tokenizer.mask_id)
    return Hidden(image, text, real, hidden)


def crossed(samples: Sequence[Sample], setup: Setup) -> Hidden:
    """Every picture of an item with every caption of it, four rows each: own other other own."""
    batch = own(samples, setup)
    words = (rearrange(x, "(B two) T -> B two T", two=2).repeat(1, 2, 1) for x in batch[1:])
    return Hidden(batch.image.repeat_interleave(2, dim=0), *(x.flatten(0, 1) for x in words))


def captioned(samples: Sequence[Sample], setup: Setup) -> Captioned:
    """Pictures and captions that belong together."""
    texts = [text for s in samples for text in s.texts]
    place = {text: i for i, text in enumerate(texts)}
    image = setup.pixels([image for s in samples for image in (s.image, s.image_b)])
    return Captioned(image, *setup.words(texts), torch.tensor([place[text] for text in texts]))


def fused_scores(model: CaptionScorer, samples: Sequence[Sample], setup: Setup) -> Tensor:
    """How likely each caption is beside each picture, float (items, pictures 2, captions 2)."""
    found = []
    for _, batch in in_batches(model, samples, lambda part: crossed(part, setup)):
        found.append(rearrange(model(*batch), "(B i t) -> B i t", i=2, t=2))
    return torch.cat(found).cpu()


def dual_scores(model: ImageTextRetriever, samples: Sequence[Sample], setup: Setup) -> Tensor:
    """Cosine of each picture and each caption, float (items, pictures 2, captions 2)."""
    found = []
    for _, batch in in_batches(model, samples, lambda part: captioned(part, setup)):
        image, text = model.embed_image(batch.image), model.embed_text(batch.text, batch.real)
        image, text = (rearrange(x, "(B two) D -> B two D", two=2) for x in (image, text))
        found.append(image @ text.mT)
    return torch.cat(found).cpu()


def binding_figures(
    model: Any,
    setup: Setup,
    limit: int,
    score: Callable[[Any, Sequence[Sample], Setup], Tensor],
) -> Figures:
    """Text, image and group score (Winoground, section 4), over all and by type."""
    samples = first(BindingPairs(setup.split, limit, setup.config.image_size), limit)
    kinds = [str(sample.info["type"]) for sample in samples]
    hits = winoground(score(model, samples, setup))
    return {k: v for name, hit in hits.items() for k, v in by_kind(name, hit, kinds).items()}


def winoground(scores: Tensor) -> dict[str, list[float]]:
    """1 where an item is solved, by score; scores: float (items, pictures 2, captions 2).

    text: each picture prefers its own caption. image: each caption prefers its own picture. group:
    both. A tie is not a preference, so a model that sees nothing scores 0, not chance.
    """
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    text = (own > other).all(dim=1)  # other[:, i]: picture i with the other's caption
    image = (own > other.flip(1)).all(dim=1)
    found = {"text": text, "image": image, "group": text & image}
    return {name: hit.float().tolist() for name, hit in found.items()}
