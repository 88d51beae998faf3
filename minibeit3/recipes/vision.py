"""Vision encoder: classes of things and of emoji, Fashion-MNIST, segmentation of scenes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minibeit3.data.emoji import STYLES, Emoji, concepts, subgroups
from minibeit3.data.images import random_flip, random_resized_crop
from minibeit3.data.packaged import FASHION_CLASSES, FashionMNIST
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_splits import EMOJI_ONLY
from minibeit3.metrics import IGNORE, class_iou, confusion, mean_iou, top1
from minibeit3.modes import ImageClassifier, SemanticSegmenter
from minibeit3.recipe import SCENES, Figures, Part, Recipe, Samples, Setup, first, in_batches
from minibeit3.recipes.dual import trained_emoji
from minibeit3.references_linear import linear, pixels
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=1000, batch_size=64, lr=1e-3, warmup=100, layer_decay=0.9, save_every=250, log_every=20
)
SEGMENTATION_PLAN = replace(PLAN, steps=2000, batch_size=32, warmup=200)
CROP = (0.6, 1.0)  # of a picture's area: what is left still shows what it is
WHOLE = (1.0, 1.0)  # a cut scene may lose its thing
SMOOTHING = 0.1
FASHION_VALIDATION = 5000  # the last of the 60,000, so that settings need no test picture
KNOWN = 5000  # pictures that the linear classifier of pixels learns from


class Labelled(NamedTuple):
    """image: float (B, 3, S, S). labels: int64 (B,)."""

    image: Tensor
    labels: Tensor


class Painted(NamedTuple):
    """image: float (B, 3, S, S). regions: int64 (B, S, S), 255 = ignore."""

    image: Tensor
    regions: Tensor


def emoji_classes(setup: Setup) -> Recipe:
    """The Unicode subgroup of an emoji, learned from three vendors, asked of a fourth (far).

    "concept": emoji that training shows in no style; "concept, far": those in the fourth style.
    """
    return _classes(
        "emoji-classes",
        "emoji of three vendors with their Unicode subgroup",
        setup,
        trained_emoji(setup.config.image_size),
        emoji_tests(setup.config.image_size),
        subgroups(),
    )


def emoji_tests(size: int) -> dict[str, Any]:
    """The three test splits by the prefix of their figures."""
    training = trained_emoji(size)
    known = {training.samples.items[i][1].code for i in training.indices}
    far = Emoji(STYLES[3:], size=size, background="random")
    return {
        "far/": Part(far, [i for i, (_, c) in enumerate(far.items) if c.code in known]),
        "concept/": Emoji(("noto",), "test", "concept", size, "random"),
        "concept, far/": Emoji(STYLES[3:], "test", "concept", size, "random"),
    }


class OneThing(Dataset[Sample]):
    """Scenes of one thing, labelled by its colour and kind."""

    def __init__(self, split: str, length: int, size: int) -> None:
        self.scenes = SceneCaptions(split, length, size, most=1)
        world = self.scenes.world
        self.classes = tuple(f"{c} {kind}" for c in world.colours for kind in world.kinds)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        (thing,) = self.scenes.scene(index)[0].things
        label = self.classes.index(f"{thing.colour} {thing.kind}")
        return replace(self.scenes[index], label=label)


def scenes_classes(setup: Setup) -> Recipe:
    """Colour and kind of the one thing in a scene, 48 classes: what few labels can teach."""
    size = setup.config.image_size
    training = OneThing("train", SCENES, size)
    return _classes(
        "scenes-classes",
        "scenes of one thing with its colour and kind, drawn as they are needed",
        setup,
        training,
        {"": OneThing(setup.split, SCENES, size)},
        training.classes,
        controls={"split": ("val", "test")},
        crop=WHOLE,
    )


def fashion_mnist(setup: Setup) -> Recipe:
    """Ten kinds of clothes in grey 28 x 28 pictures; `data` is the folder of the idx.gz files."""
    whole = FashionMNIST(setup.root(), "train")
    cut = max(1, len(whole) - FASHION_VALIDATION)
    if setup.split == "val":
        asked: Any = Part(whole, range(cut, len(whole)))
    else:
        asked = FashionMNIST(setup.root(), "test")
    return _classes(
        "fashion-mnist",
        "Fashion-MNIST, grey pictures of clothes",
        setup,
        Part(whole, range(cut)),
        {"": asked},
        FASHION_CLASSES,
        controls={"split": ("val", "test")},
    )


def _classes(
    name: str,
    about: str,
    setup: Setup,
    training: Any,
    splits: dict[str, Any],
    classes: tuple[str, ...],
    controls: dict[str, tuple[str, ...]] | None = None,
    crop: tuple[float, float] = CROP,
) -> Recipe:
    """What these recipes share: crops and mirrors, one linear layer, top-1."""
    chosen = setup.choose(training)

    def evaluate(model: ImageClassifier, limit: int) -> Figures:
        figures: Figures = {}
        for prefix, data in splits.items():
            samples = first(data, limit)
            told = classes_of(model, samples, setup)
            figures[f"{prefix}top1"] = top1(told, labels_of(samples, len(classes))).accuracy
        return figures

    def references(limit: int) -> Figures:
        known = first(chosen, KNOWN)
        labels = labels_of(known, len(classes)).tolist()
        frequent, features = Counter(labels).most_common(1)[0][0], pixels(pictures(known))
        figures: Figures = {}
        for prefix, data in splits.items():
            samples = first(data, limit)
            truth = labels_of(samples, len(classes))
            figures[f"majority/{prefix}top1"] = (truth == frequent).float().mean().item()
            told = torch.tensor(linear(features, labels, pixels(pictures(samples))))
            figures[f"pixels, linear/{prefix}top1"] = top1(told, truth).accuracy
        return figures

    return Recipe(
        name=name,
        mode="vision",
        about=about,
        build=lambda backbone, g: ImageClassifier(backbone, len(classes), g),
        samples=chosen,
        collate=lambda samples, g: classes_batch(samples, setup, len(classes), g, crop),
        loss=lambda model, batch: model.loss(batch.image, batch.labels, SMOOTHING),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        muon=True,
        head_lr=10,
        labels=classes,
        controls=controls or {},
    )


def classes_batch(
    samples: Sequence[Sample],
    setup: Setup,
    classes: int,
    generator: torch.Generator,
    crop: tuple[float, float] = CROP,
) -> Labelled:
    """A part of each picture, mirrored half of the time: what a thing is does not depend on it."""
    size = setup.config.image_size
    parts = pictures(samples)
    if crop != WHOLE:
        parts = [random_resized_crop(part, size, generator, crop) for part in parts]
    image = setup.pixels([random_flip(part, (), generator) for part in parts])
    return Labelled(image, labels_of(samples, classes))


def classes_of(model: ImageClassifier, samples: Sequence[Sample], setup: Setup) -> Tensor:
    """The likeliest class of each whole picture, int64 (n,), on the CPU."""
    batches = in_batches(model, samples, lambda part: setup.pixels([s.image for s in part]))
    return torch.cat([model(image).argmax(dim=1).cpu() for _, image in batches])


def labels_of(samples: Sequence[Sample], classes: int) -> Tensor:
    """int64 (n,). ValueError for a sample without a label, or one beyond the head's classes."""
    for sample in samples:
        if sample.label is None or not 0 <= sample.label < classes:
            raise ValueError(f"{sample.key}: label {sample.label}, the head has 0 .. {classes - 1}")
    return torch.tensor([sample.label for sample in samples])


def pictures(samples: Sequence[Sample]) -> list[Tensor]:
    """uint8 (3, H, W) each. ValueError for a sample without a picture."""
    found = [sample.image for sample in samples if sample.image is not None]
    if len(found) < len(samples):
        raise ValueError(f"{len(samples) - len(found)} of {len(samples)} samples have no picture")
    return found


# ---- segmentation


def emoji_segmentation(setup: Setup) -> Recipe:
    """The group (animals, food, ...) of every pixel of emoji scenes, masks from their alpha.

    Holdouts: a vendor, or pairs of nouns.
    """
    return _segmentation("emoji-segmentation", setup, "emoji", "group", EMOJI_ONLY)


def scenes_segmentation(setup: Setup) -> Recipe:
    """The kind (circle, star, ...) of every pixel of scenes of shapes."""
    return _segmentation("scenes-segmentation", setup, "shapes", "kind", ("combo", "size"))


def _segmentation(
    name: str, setup: Setup, world: str, what: str, holdouts: tuple[str, ...]
) -> Recipe:
    def scenes(split: str, length: int) -> SceneCaptions:
        return SceneCaptions(split, length, setup.config.image_size, world, setup.holdout)

    training = scenes("train", SCENES)
    names = region_names(training)

    def splits(limit: int) -> dict[str, Samples]:
        asked = {"": setup.split} if not setup.holdout else {"held/": "test", "control/": "control"}
        return {k: first(scenes(split, limit), limit) for k, split in asked.items()}

    def evaluate(model: SemanticSegmenter, limit: int) -> Figures:
        figures: Figures = {}
        for prefix, samples in splits(limit).items():
            told = regions_of(model, samples, setup)
            found = region_figures(told, _regions(samples, len(names)), names)
            figures |= {prefix + key: value for key, value in found.items()}
        if setup.holdout:
            figures["gap"] = figures["control/mIoU"] - figures["held/mIoU"]
        return figures

    def references(limit: int) -> Figures:
        figures: Figures = {}
        for prefix, samples in splits(limit).items():
            truth = _regions(samples, len(names))
            frequent = int(truth[truth > 0].mode().values)
            told = {"ground": torch.zeros_like(truth), "outline known": (truth > 0) * frequent}
            for line, guess in told.items():
                score = mean_iou(confusion(guess, truth, len(names)))
                figures[f"{line}/{prefix}mIoU"] = score.accuracy
        return figures

    return Recipe(
        name=name,
        mode="vision",
        about=f"scenes of {world} with the {what} of every pixel, drawn as they are needed",
        build=lambda backbone, g: SemanticSegmenter(backbone, len(names), g),
        samples=setup.choose(training),
        collate=lambda samples, _: painted_batch(samples, setup, len(names)),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=SEGMENTATION_PLAN,
        muon=True,
        head_lr=10,
        labels=names,
        goals={"mIoU": 0.80},
        controls={"holdout": holdouts, "split": ("val", "test")},
    )


def region_names(scenes: SceneCaptions) -> tuple[str, ...]:
    """Names of the region classes: the ground, then the kinds, or the emoji groups, in order."""
    groups = {concept.name: concept.group for concept in concepts()}
    emoji = scenes.world.name == "emoji"
    classes = scenes.world.classes.items()
    by_class = {number: groups[kind] if emoji else kind for kind, number in classes}
    return ("ground", *(by_class[number] for number in sorted(by_class)))


def painted_batch(samples: Sequence[Sample], setup: Setup, classes: int) -> Painted:
    """Scenes as they are: there are more of them than any run sees."""
    return Painted(setup.pixels([s.image for s in samples]), _regions(samples, classes))


def regions_of(model: SemanticSegmenter, samples: Sequence[Sample], setup: Setup) -> Tensor:
    """The likeliest class of every pixel, int64 (n, S, S), on the CPU."""
    batches = in_batches(model, samples, lambda part: setup.pixels([s.image for s in part]))
    return torch.cat([model(image).argmax(dim=1).cpu() for _, image in batches])


def region_figures(told: Tensor, truth: Tensor, names: Sequence[str]) -> Figures:
    """mIoU over all classes, IoU of each, and the share of right pixels."""
    counts = confusion(told, truth, len(names))
    by_class = class_iou(counts.sum(0)).tolist()
    figures = {"mIoU": mean_iou(counts).accuracy}
    figures |= {f"IoU/{name}": v for name, v in zip(names, by_class, strict=True) if v == v}
    right = (told == truth)[truth != IGNORE]
    return figures | {"pixels": right.float().mean().item()}


def _regions(samples: Sequence[Sample], classes: int) -> Tensor:
    """int64 (n, S, S). ValueError for a sample without regions, or a class beyond the head's."""
    found = [sample.regions for sample in samples if sample.regions is not None]
    if len(found) < len(samples):
        raise ValueError(f"{len(samples) - len(found)} of {len(samples)} samples have no regions")
    regions = torch.stack(found)
    most = int(regions.masked_fill(regions == IGNORE, 0).max())
    if most >= classes:
        raise ValueError(f"a region of class {most}, the head has 0 .. {classes - 1}")
    return regions
