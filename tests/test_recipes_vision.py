"""Recipes of the vision mode: what they train on, what they ask, and figures an oracle reaches."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minibeit3 import PRESETS
from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.checkpoint import save_pretrained
from minibeit3.data.emoji import Emoji, subgroups
from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.finetune import evaluate_saved, finetune, prepare
from minibeit3.objective import MaskedDataModel
from minibeit3.objects import Objects
from minibeit3.recipe import Recipe, Setup
from minibeit3.recipes import open_recipe
from minibeit3.recipes.detection import objects_of
from minibeit3.references_linear import linear, pixels
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

CONFIG = replace(PRESETS["tiny"], depth=1, width=32, ffn_width=32, heads=2, fusion_layers=1)
PLAN = TrainConfig(steps=3, batch_size=4, lr=1e-3, dtype="float32", save_every=0, log_every=1)


def setup(**changes: Any) -> Setup:
    return Setup(config=CONFIG, tokenizer=TextTokenizer.lab(), **changes)


@pytest.fixture(scope="module")
def classes() -> Recipe:
    return open_recipe("emoji-classes", setup(labels=40))


class Oracle(nn.Module):
    """Knows every sample by its pixels."""

    def __init__(self, samples: list[Sample], answers: list[Any]) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        image = setup().pixels([sample.image for sample in samples])
        rows = zip(image, answers, strict=True)
        self.answers = {row.numpy().tobytes(): answer for row, answer in rows}

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([self.answers[row.numpy().tobytes()] for row in image])

    def detect(self, image: Tensor) -> list[Objects]:
        return [self.answers[row.numpy().tobytes()] for row in image]


def test_emoji_training_shows_no_openmoji_and_no_concept_of_the_tests(classes: Recipe) -> None:
    whole = open_recipe("emoji-classes", setup())
    part: Any = whole.samples
    shown = {part.samples.items[i] for i in part.indices}
    assert {style for style, _ in shown} == {"noto", "twemoji", "fluent3d"}
    held = {concept.code for _, concept in Emoji(split="test", holdout="concept").items}
    assert held and not held & {concept.code for _, concept in shown}
    assert len(list(classes.samples)) == 40 and whole.labels == subgroups()


def test_crops_follow_the_generator_and_keep_the_label(classes: Recipe) -> None:
    samples = [classes.samples[i] for i in range(4)]
    one, again, other = (classes.collate(samples, generator_of(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.image, again.image) and not torch.equal(one.image, other.image)
    assert one.image.shape == (4, 3, 64, 64)
    assert other.labels.tolist() == [sample.label for sample in samples]
    for label in (None, len(subgroups())):
        with pytest.raises(ValueError, match="the head has 0"):
            classes.collate([replace(samples[0], label=label)], generator_of(0))
    with pytest.raises(ValueError, match="1 of 1 samples have no picture"):
        classes.collate([replace(samples[0], image=None)], generator_of(0))


@pytest.mark.slow
def test_an_oracle_names_every_emoji_and_the_lines_stand_below(classes: Recipe) -> None:
    tests = [
        Emoji(("openmoji",), background="random"),
        Emoji(("noto",), "test", "concept", background="random"),
    ]
    samples = [data[i] for data in tests for i in range(len(data))]
    oracle = Oracle(samples, [torch.eye(92)[sample.label or 0] for sample in samples])
    figures = classes.evaluate(oracle, 30)
    assert figures == {"far/top1": 1, "concept/top1": 1, "concept, far/top1": 1}
    lines = classes.references(30)
    assert {name.partition("/")[2] for name in lines} == set(figures)
    assert all(0 <= value < 0.5 for value in lines.values())


def drawn(split: str, length: int, world: str, holdout: str | None = None) -> list[Sample]:
    data = SceneCaptions(split, length, 64, world, holdout)
    return [data[i] for i in range(length)]


def idx(path: Path, shape: list[int], values: bytes) -> None:
    head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    path.write_bytes(gzip.compress(head + values))


def test_fashion_mnist_keeps_its_last_pictures_for_choosing_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem, n in (("train", 6), ("t10k", 3)):
        grey = b"".join(bytes([10 * i]) * 784 for i in range(n))
        idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", [n, 28, 28], grey)
        idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", [n], bytes(range(n)))
    monkeypatch.setattr("minibeit3.recipes.vision.FASHION_VALIDATION", 2)
    recipe = open_recipe("fashion-mnist", setup(data=tmp_path))
    assert [sample.label for sample in list(recipe.samples)] == [0, 1, 2, 3]
    for split in ("val", "test"):
        asked = open_recipe("fashion-mnist", setup(data=tmp_path, split=split))
        images = [torch.full((3, 28, 28), 10 * i, dtype=torch.uint8) for i in range(6)]
        known = [Sample(key=str(i), image=image) for i, image in enumerate(images)]
        oracle = Oracle(known, [torch.eye(10)[i] for i in range(6)])
        assert asked.evaluate(oracle, 9) == {"top1": 1}
        assert set(asked.references(9)) == {"majority/top1", "pixels, linear/top1"}
    with pytest.raises(ValueError, match="give its folder"):
        open_recipe("fashion-mnist", setup())


def test_an_oracle_paints_every_region_and_the_ground_alone_earns_one_class() -> None:
    recipe = open_recipe("emoji-segmentation", setup())
    samples = drawn("test", 8, "emoji")
    assert recipe.labels[0] == "ground" and "food-drink" in recipe.labels
    maps = [torch.eye(len(recipe.labels))[s.regions].permute(2, 0, 1) for s in samples]
    figures = recipe.evaluate(Oracle(samples, maps), 8)
    assert figures.pop("mIoU") == figures.pop("pixels") == 1
    assert set(figures.values()) == {1} and "IoU/ground" in figures
    lines = recipe.references(8)
    assert lines["ground/mIoU"] < 0.2 < lines["outline known/mIoU"] < 0.6
    unpainted = [replace(samples[0], regions=None)]
    with pytest.raises(ValueError, match="no regions"):
        recipe.collate(unpainted, generator_of(0))


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_an_oracle_finds_every_thing_and_places_without_kinds_earn_little(world: str) -> None:
    recipe = open_recipe(f"{'scenes' if world == 'shapes' else world}-detection", setup())
    samples = drawn("test", 12, world)
    truth = objects_of(samples)
    for sample, things in zip(samples, truth, strict=True):
        assert sample.boxes is not None and sample.regions is not None
        for box, label, mask in zip(things.boxes, things.labels, things.masks, strict=True):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert box.tolist() == [int(edge) for edge in edges]
            assert (sample.regions[mask] == label + 1).all()
    figures = recipe.evaluate(Oracle(samples, list(truth)), 12)
    assert set(figures) == {f"{k}/{m}" for k in ("box", "mask") for m in ("AP", "AP50")}
    assert all(value == pytest.approx(1) for value in figures.values())
    assert recipe.references(12)["places known/box/AP50"] < 0.5
    with pytest.raises(ValueError, match="no drawn scene"):
        recipe.collate([replace(samples[0], boxes=None)], generator_of(0))


def test_held_out_scenes_are_scored_beside_their_control() -> None:
    recipe = open_recipe("scenes-detection", setup(holdout="size"))
    tests = {k: drawn(k, 6, "shapes", "size") for k in ("test", "control")}
    samples = [*tests["test"], *tests["control"]]
    figures = recipe.evaluate(Oracle(samples, list(objects_of(samples))), 6)
    assert figures["held/box/AP50"] == pytest.approx(1) and figures["gap"] == pytest.approx(0)
    assert min(len(s.boxes) for s in tests["test"] if s.boxes is not None) > 4


@pytest.mark.parametrize("name", ["emoji-classes", "emoji-segmentation", "scenes-detection"])
def test_a_trained_and_saved_model_scores_as_before(tmp_path: Path, name: str) -> None:
    save_pretrained(
        MaskedDataModel(build_backbone(CONFIG, generator_of(7))), tmp_path, TextTokenizer.lab()
    )
    job = prepare(name, tmp_path)
    _, records = finetune(job, tmp_path / "run", PLAN)
    assert len(records) == 3
    with torch.inference_mode():
        figures = job.recipe.evaluate(job.model, 6)
    assert evaluate_saved(tmp_path / "run", limit=6)[1] == figures


def test_the_linear_line_learns_what_pixels_show() -> None:
    g = torch.Generator().manual_seed(0)
    images = list(torch.randint(0, 60, (60, 3, 32, 32), generator=g).byte())
    for i, image in enumerate(images):
        image[:, :, 16 * (i % 2) : 16 * (i % 2) + 16] += 60
    found = linear(pixels(images[:40]), [i % 2 for i in range(40)], pixels(images[40:]))
    assert found == [i % 2 for i in range(20)]
    assert pixels(images).shape == (60, 768)


def test_scenes_of_one_thing_are_labelled_by_what_their_caption_grammar_knows() -> None:
    recipe = open_recipe("scenes-classes", setup(labels=30))
    assert len(recipe.labels) == 48 and len(set(recipe.labels)) == 48
    for sample in recipe.samples:
        scene: Any = sample.info["scene"]
        (thing,) = scene["things"]
        assert recipe.labels[sample.label or 0] == f"{thing['colour']} {thing['kind']}"


def test_scenes_of_one_thing_are_never_cut() -> None:
    recipe = open_recipe("scenes-classes", setup(labels=4))
    samples = list(recipe.samples)
    whole = setup().pixels([sample.image for sample in samples])
    for given, drawn in zip(recipe.collate(samples, generator_of(0)).image, whole, strict=True):
        assert torch.equal(given, drawn) or torch.equal(given.flip(-1), drawn)


def test_regions_of_shapes_are_named_by_kind_and_an_oracle_reaches_one() -> None:
    recipe = open_recipe("scenes-segmentation", setup())
    kinds = ("circle", "square", "triangle", "star", "cross", "ring")
    assert recipe.labels[0] == "ground" and set(recipe.labels[1:]) == set(kinds)
    data = SceneCaptions("test", 4, CONFIG.image_size)
    samples = [data[i] for i in range(4)]
    truth = [one_hot(sample, len(recipe.labels)) for sample in samples]
    assert recipe.evaluate(Oracle(samples, truth), 4)["mIoU"] == 1.0


def one_hot(sample: Sample, classes: int) -> Tensor:
    assert sample.regions is not None
    return torch.nn.functional.one_hot(sample.regions, classes).permute(2, 0, 1).float()
