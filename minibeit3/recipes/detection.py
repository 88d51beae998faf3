"""Vision encoder: what stands where in scenes, with boxes and masks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from minibeit3.data.emoji import concepts
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_splits import EMOJI_ONLY
from minibeit3.data.scenes import from_dict, instances, world_named
from minibeit3.metrics_detection import average_precision
from minibeit3.modes import ObjectDetector
from minibeit3.objects import Objects
from minibeit3.recipe import SCENES, Figures, Recipe, Samples, Setup, first, in_batches
from minibeit3.train import TrainConfig

PLAN = TrainConfig(
    steps=2000, batch_size=32, lr=1e-3, warmup=200, layer_decay=0.9, save_every=500, log_every=20
)
GOALS = {"box/AP50": 0.80, "mask/AP50": 0.75}
SHAPES_HELD = ("combo", "count", "size")
KINDS: tuple[Literal["box", "mask"], ...] = ("box", "mask")
KNOWN = 1000  # training scenes that the most frequent class is counted in


class Pictured(NamedTuple):
    """image: float (B, 3, S, S). objects: what is in each, boxes in pixels of the image."""

    image: Tensor
    objects: list[Objects]


def scenes_detection(setup: Setup) -> Recipe:
    """Boxes and masks of the shapes of a scene, by kind; holdouts: compositions kept out."""
    return _detection("scenes-detection", setup, "shapes", SHAPES_HELD)


def emoji_detection(setup: Setup) -> Recipe:
    """Boxes and masks of the drawings of a scene, by group; holdouts: a vendor, pairs of nouns."""
    return _detection("emoji-detection", setup, "emoji", EMOJI_ONLY)


def _detection(name: str, setup: Setup, world: str, holdouts: tuple[str, ...]) -> Recipe:
    names = class_names(world)

    def scenes(split: str, length: int) -> SceneCaptions:
        return SceneCaptions(split, length, setup.config.image_size, world, setup.holdout)

    def splits(limit: int) -> dict[str, Samples]:
        asked = {"": setup.split} if not setup.holdout else {"held/": "test", "control/": "control"}
        return {k: first(scenes(split, limit), limit) for k, split in asked.items()}

    def evaluate(model: ObjectDetector, limit: int) -> Figures:
        figures: Figures = {}
        for prefix, samples in splits(limit).items():
            found = objects_found(model, samples, setup)
            figures |= detection_figures(found, objects_of(samples), prefix)
        if setup.holdout:
            figures["gap"] = figures["control/box/AP50"] - figures["held/box/AP50"]
        return figures

    def references(limit: int) -> Figures:
        known = scenes("train", KNOWN)
        things = [thing for i in range(KNOWN) for thing in known.scene(i)[0].things]
        classes = known.world.classes
        frequent = Counter(classes[t.kind] - 1 for t in things).most_common(1)[0][0]
        figures: Figures = {}
        for prefix, samples in splits(limit).items():
            truth = objects_of(samples)
            told = [one._replace(labels=torch.full_like(one.labels, frequent)) for one in truth]
            found = detection_figures(told, truth, prefix)
            figures |= {f"places known/{key}": value for key, value in found.items()}
        return figures

    return Recipe(
        name=name,
        mode="vision",
        about=f"{world} scenes with boxes and masks, drawn as they are needed",
        build=lambda backbone, g: ObjectDetector(backbone, len(names), g),
        samples=setup.choose(scenes("train", SCENES)),
        collate=lambda samples, _: pictured_batch(samples, setup),
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        references=references,
        plan=PLAN,
        muon=True,
        head_lr=10,
        labels=names,
        goals=GOALS,
        controls={"holdout": holdouts, "split": ("val", "test")},
    )


def class_names(world: str) -> tuple[str, ...]:
    """The classes of things: kinds of shapes, or groups of emoji, in the world's order."""
    named = world_named(world)
    if world == "shapes":
        names = {number: kind for kind, number in named.classes.items()}
    else:
        groups = {concept.name: concept.group for concept in concepts()}
        names = {number: groups[kind] for kind, number in named.classes.items()}
    return tuple(names[number] for number in sorted(names))


def pictured_batch(samples: Sequence[Sample], setup: Setup) -> Pictured:
    """Scenes as they are: there are more of them than any run sees."""
    return Pictured(setup.pixels([s.image for s in samples]), objects_of(samples))


def objects_of(samples: Sequence[Sample]) -> list[Objects]:
    """The things of each scene: boxes and masks by instance, labels = class less one.

    ValueError for a sample that is no scene with boxes.
    """
    found = []
    for sample in samples:
        if sample.boxes is None or sample.image is None or "scene" not in sample.info:
            raise ValueError(f"{sample.key} is no drawn scene with boxes: use SceneCaptions")
        scene = from_dict(cast(Mapping[str, Any], sample.info["scene"]))
        classes = world_named(scene.world).classes
        labels = torch.tensor([classes[thing.kind] - 1 for thing in scene.things])
        there = torch.from_numpy(instances(scene, sample.image.shape[-1]))
        masks = there[None] == torch.arange(1, len(labels) + 1)[:, None, None]
        found.append(Objects(sample.boxes, labels, masks, torch.ones(len(labels))))
    return found


def objects_found(model: ObjectDetector, samples: Sequence[Sample], setup: Setup) -> list[Objects]:
    """What the model finds in each scene, on the CPU."""
    batches = in_batches(model, samples, lambda part: setup.pixels([s.image for s in part]))
    return [found for _, image in batches for found in model.detect(image)]


def detection_figures(
    found: Sequence[Objects], truth: Sequence[Objects], prefix: str = ""
) -> Figures:
    """AP50 and AP of boxes and of masks."""
    return {
        f"{prefix}{kind}/{name}": score.accuracy
        for kind in KINDS
        for name, score in average_precision(found, truth, kind, resamples=0).items()
    }
