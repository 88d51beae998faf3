"""Dual encoder: names and emoji, captions and scenes, each found by the other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minibeit3.data.emoji import STYLES, Emoji, subgroups
from minibeit3.data.images import random_flip, random_resized_crop
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.metrics import recall_at
from minibeit3.modes import ImageTextRetriever
from minibeit3.recipe import SCENES, Figures, Part, Recipe, Setup, first, in_batches
from minibeit3.recipes.binding import binding_figures, dual_scores
from minibeit3.references import nearest_picture
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=1500, batch_size=64, lr=1e-3, warmup=150, layer_decay=0.9, save_every=500, log_every=20
)
RANKS = (1, 5, 10)
HOLDOUTS = ("combo", "relation", "count", "size")
CROP = (0.6, 1.0)  # of a drawing's area: what is left still shows what it is


class Matched(NamedTuple):
    """Rows of pictures and texts that belong together.

    image: float (B, 3, S, S). text: int64 (B, T). real: bool (B, T). ids: int64 (B,), equal for
    rows that mean the same, which are no negatives of each other.
    """

    image: Tensor
    text: Tensor
    real: Tensor
    ids: Tensor


def emoji_retrieval(setup: Setup) -> Recipe:
    """Names and emoji of three vendors, tested on a fourth (far) and on concepts never shown.

    Holdout "near" keeps Twemoji out of training too and tests on it, although pretraining has shown
    it; OpenMoji and the new concepts it has not.
    """
    size, near = setup.config.image_size, setup.holdout == "near"
    training = trained_emoji(size, [s for s in STYLES[:3] if not (near and s == "twemoji")])
    known = {training.samples.items[i][1].code for i in training.indices}

    def splits(limit: int) -> dict[str, list[Sample]]:
        def shown(style: str) -> list[Sample]:
            data = Emoji((style,), size=size, background="random")
            return first(
                Part(data, [i for i, (_, c) in enumerate(data.items) if c.code in known]), limit
            )

        def new(style: str) -> list[Sample]:
            return first(Emoji((style,), "test", "concept", size, "random"), limit)

        tests = {"far": shown("openmoji"), "concept": new("noto"), "concept, far": new("openmoji")}
        return tests | ({"near": shown("twemoji")} if near else {})

    def evaluate(model: ImageTextRetriever, limit: int) -> Figures:
        figures: Figures = {}
        classes = embed_texts(model, [name.replace("-", " ") for name in subgroups()], setup)
        for split, samples in splits(limit).items():
            image = embed_images(model, samples, setup)
            text = embed_texts(model, [_name(sample) for sample in samples], setup)
            groups = [_picture(sample) for sample in samples]
            only = [groups.index(group) for group in dict.fromkeys(groups)]
            once = [groups[i] for i in only]  # identical pictures are one item
            found = retrieval_figures(image[only], once, text, groups)
            told = (image @ classes.T).argmax(dim=1).tolist()
            hits = [guess == sample.label for guess, sample in zip(told, samples, strict=True)]
            found["class names"] = sum(hits) / len(hits)
            figures |= {f"{split}/{name}": value for name, value in found.items()}
        return figures

    def references(limit: int) -> Figures:
        lines: Figures = {}
        shown = first(training, len(training))
        pictures = [_image(sample) for sample in shown]
        for split, samples in splits(limit).items():
            groups = [_picture(sample) for sample in samples]
            nearest = nearest_picture(pictures, [_image(sample) for sample in samples])
            hits = [_picture(shown[i]) == group for i, group in zip(nearest, groups, strict=True)]
            lines[f"nearest pixels/{split}/image to text@1"] = sum(hits) / len(hits)
            lines[f"chance/{split}/image to text@1"] = 1 / len(samples)
            lines[f"chance/{split}/class names"] = 1 / len(subgroups())
        return lines

    return Recipe(
        name="emoji-retrieval",
        mode="dual",
        about="emoji of three vendors with their names, keywords and glosses",
        build=lambda backbone, g: ImageTextRetriever(backbone, g),
        samples=setup.choose(training),
        collate=lambda samples, g: emoji_batch(samples, setup, g),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        muon=True,
        goals={"far/image to text@1": 0.40, "far/text to image@1": 0.40},
        controls={"holdout": ("near",)},
    )


def scenes_retrieval(setup: Setup) -> Recipe:
    """Scenes of shapes and their full captions; the binding test for the same model beside it."""

    def scenes(split: str, length: int) -> SceneCaptions:
        return SceneCaptions(split, length, setup.config.image_size, holdout=setup.holdout)

    def evaluate(model: ImageTextRetriever, limit: int) -> Figures:
        splits = (
            {"": setup.split} if not setup.holdout else {"held/": "test", "control/": "control"}
        )
        figures: Figures = {}
        for prefix, split in splits.items():
            samples = first(scenes(split, limit), limit)
            captions = [_canonical(sample) for sample in samples]
            once = list(dict.fromkeys(captions))  # scenes that are told alike share their caption
            image, text = embed_images(model, samples, setup), embed_texts(model, once, setup)
            found = retrieval_figures(image, captions, text, once)
            figures |= {prefix + name: value for name, value in found.items()}
        if setup.holdout:
            return figures
        bound = binding_figures(model, setup, min(limit, 300), dual_scores)
        return figures | {f"binding/{name}": value for name, value in bound.items()}

    return Recipe(
        name="scenes-retrieval",
        mode="dual",
        about="scenes of shapes with captions that name every thing",
        build=lambda backbone, g: ImageTextRetriever(backbone, g),
        samples=setup.choose(scenes("train", SCENES)),
        collate=lambda samples, _: scenes_batch(samples, setup),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=lambda limit: {f"chance/image to text@{k}": k / limit for k in RANKS},
        plan=PLAN,
        muon=True,
        goals={"image to text@1": 0.80, "text to image@1": 0.80},
        controls={"holdout": HOLDOUTS, "split": ("val", "test")},
    )


def trained_emoji(size: int, styles: Sequence[str] = STYLES[:3]) -> Part:
    """Emoji of these vendors, without the concepts and compositions that tests hold out."""
    data = Emoji(styles, size=size, background="random")
    tests = (Emoji(("noto",), "test", holdout) for holdout in ("concept", "composition"))
    held = {concept.code for test in tests for _, concept in test.items}
    return Part(data, [i for i, (_, concept) in enumerate(data.items) if concept.code not in held])


def emoji_batch(samples: Sequence[Sample], setup: Setup, generator: torch.Generator) -> Matched:
    """One caption each, drawn; a part of the picture, mirrored where no word speaks of sides."""
    texts, pictures = [], []
    for sample in samples:
        text = sample.texts[int(torch.randint(len(sample.texts), (), generator=generator))]
        part = random_resized_crop(_image(sample), setup.config.image_size, generator, CROP)
        pictures.append(random_flip(part, (*sample.texts, text), generator))
        texts.append(text)
    ids = _numbered([_picture(sample) for sample in samples])
    return Matched(setup.pixels(pictures), *setup.words(texts), ids)


def scenes_batch(samples: Sequence[Sample], setup: Setup) -> Matched:
    """Scenes as they are, with the caption that names every thing."""
    captions = [_canonical(sample) for sample in samples]
    image = setup.pixels([sample.image for sample in samples])
    return Matched(image, *setup.words(captions), _numbered(captions))


def embed_images(model: ImageTextRetriever, samples: Sequence[Sample], setup: Setup) -> Tensor:
    """Unit vectors (B, D) of the samples' pictures, on the CPU."""
    batches = in_batches(model, samples, lambda part: setup.pixels([s.image for s in part]))
    return torch.cat([model.embed_image(image).cpu() for _, image in batches])


def embed_texts(model: ImageTextRetriever, texts: Sequence[str], setup: Setup) -> Tensor:
    """Unit vectors (B, D) of texts, on the CPU."""
    samples = [Sample(key=text, texts=(text,)) for text in texts]
    batches = in_batches(model, samples, lambda part: setup.words([s.texts[0] for s in part]))
    return torch.cat([model.embed_text(*words).cpu() for _, words in batches])


def retrieval_figures(
    image: Tensor, image_group: Sequence[str], text: Tensor, text_group: Sequence[str]
) -> Figures:
    """Recall at 1, 5 and 10 both ways; what has the same group belongs together.

    image: (n, D), text: (m, D), unit vectors. ValueError for a group on one side alone.
    """
    right = torch.tensor([[i == t for t in text_group] for i in image_group])
    similarity = image @ text.T
    both = {"image to text": (similarity, right), "text to image": (similarity.T, right.T)}
    figures = {
        f"{way}@{k}": recall_at(k, *pair).accuracy for way, pair in both.items() for k in RANKS
    }
    return figures | {"pictures": float(len(image_group)), "texts": float(len(text_group))}


def _numbered(names: Sequence[str]) -> Tensor:
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place[name] for name in names])


def _picture(sample: Sample) -> str:
    """A name of the drawing that all emoji with this very drawing share."""
    same = sample.info["same"]
    assert isinstance(same, tuple)
    return min(same)


def _name(sample: Sample) -> str:
    return str(sample.info["name"])


def _canonical(sample: Sample) -> str:
    return str(sample.info["canonical"])


def _image(sample: Sample) -> Tensor:
    if sample.image is None:
        raise ValueError(f"{sample.key} has no picture")
    return sample.image
