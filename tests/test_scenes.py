"""Scenes: deterministic, non-overlapping, and drawn where their ground truth says."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_splits import HELD_PAIRS, four_circles, shows_held_relation
from minibeit3.data.scene_text import is_true
from minibeit3.data.scenes import (
    DISTANCES,
    SHAPES,
    Scene,
    Thing,
    any_thing,
    boxes,
    draw,
    fits,
    from_dict,
    furnish,
    instances,
    item_rng,
    pick,
    regions,
    shuffled,
    to_dict,
)


def some_scenes(n: int) -> list[Scene]:
    data = SceneCaptions("test", n)
    return [data.scene(i)[0] for i in range(n)]


def test_things_never_overlap_and_stay_inside() -> None:
    for scene in some_scenes(300):
        assert fits(SHAPES, scene.things)
        alone = [instances(replace(scene, things=(thing,)), 96) for thing in scene.things]
        assert np.sum(alone, 0).max() == 1  # each drawn alone: no pixel belongs to two
        assert all(not mask[[0, -1]].any() and not mask[:, [0, -1]].any() for mask in alone)


@pytest.mark.parametrize("size", [32, 64, 96, 160])
def test_boxes_are_the_tight_boxes_of_the_instance_map(size: int) -> None:
    for scene in some_scenes(20):
        covered = instances(scene, size)
        for i, (x0, y0, x1, y1) in enumerate(boxes(scene, size).astype(int), 1):
            rows, columns = np.nonzero(covered == i)
            ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert (x0, y0, x1, y1) == ends
            thing = scene.things[i - 1]
            assert abs((x0 + x1) / 2 - thing.cx * size) <= 1.5
            radius = SHAPES.radii[thing.size] * size
            assert 0.75 * radius - 1 <= (x1 - x0) / 2 <= radius + 1


def test_pixels_have_the_colour_of_their_thing_and_the_ground_elsewhere() -> None:
    for scene in some_scenes(50):
        image, covered = draw(scene).astype(int), instances(scene)
        for i, thing in enumerate(scene.things, 1):
            inner = image[covered == i].mean(0)
            wanted = np.clip(np.array(COLOUR_RGB[thing.colour]) * (1 + 0.08 * thing.shade), 0, 255)
            assert np.abs(inner - wanted).max() < 45, thing  # the rim is mixed with the ground
        ground = SHAPES.backgrounds[scene.background]
        assert (image[0, 0] == ground).all()


def test_regions_name_the_kind_of_every_instance() -> None:
    for scene in some_scenes(50):
        covered, classes = instances(scene), regions(scene)
        for i, thing in enumerate(scene.things, 1):
            assert set(np.unique(classes[covered == i])) == {SHAPES.classes[thing.kind]}
        assert not classes[covered == 0].any()


@pytest.mark.parametrize("kind", sorted(DISTANCES))
def test_every_shape_is_mirror_symmetric_and_fills_its_extent(kind: str) -> None:
    scene = Scene("shapes", "white", (Thing(kind, "blue", "large"),))
    mask = instances(scene, 256).astype(bool)
    # The centre lies an eighth of a pixel right of the middle (phases of a quarter of a pixel).
    assert (mask ^ mask[:, ::-1]).sum() <= 0.06 * mask.sum()
    (x0, _, x1, _) = boxes(scene, 256)[0]
    assert 0.74 <= (x1 - x0) / (2 * 0.14 * 256) <= 1.02


def test_shapes_are_told_apart_by_their_pixels() -> None:
    masks = [
        instances(Scene("shapes", "white", (Thing(kind, "red", "small"),))).astype(bool)
        for kind in DISTANCES
    ]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a ^ b).sum() > 0.12 * (a | b).sum()


def test_items_depend_on_their_name_only() -> None:
    forwards, again = SceneCaptions("train", 40), SceneCaptions("train", 1000)
    picked = [forwards[i] for i in range(40)]
    for i in reversed(range(40)):
        item = again[i]
        assert item.key == picked[i].key and item.texts == picked[i].texts
        assert item.image is not None and item.image.equal(picked[i].image)  # type: ignore[arg-type]
    assert SceneCaptions("val", 40)[0].info != picked[0].info


def test_a_scene_survives_its_plain_data() -> None:
    for scene in some_scenes(20):
        assert from_dict(to_dict(scene)) == scene


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": "moon"}, "unknown world"),
        ({"background": "black"}, "'black' is not in the shapes world"),
        ({"things": [{"kind": "blob"}]}, "not a scene"),
        ({"things": 3}, "not a scene"),
        ({"things": [{"kind": "blob", "colour": "red", "size": "small"}]}, "'blob'"),
        ({"things": [{"kind": "star", "colour": "red", "size": "small", "cx": 0.0}]}, "frame"),
        ({"things": [{"kind": "star", "colour": "red", "size": "small"}] * 2}, "overlap"),
    ],
)
def test_a_malformed_scene_is_refused_by_name(change: dict[str, object], message: str) -> None:
    data = to_dict(Scene("shapes", "white", (Thing("star", "red", "small"),))) | change
    with pytest.raises(ValueError, match=message):
        from_dict(data)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"16 is outside 32\.\.512"):
        draw(some_scenes(1)[0], 16)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        SceneCaptions("dev", 3)
    with pytest.raises(ValueError, match="belongs to a holdout"):
        SceneCaptions("control", 3)
    with pytest.raises(ValueError, match="unknown holdout 'style' in the shapes world"):
        SceneCaptions("train", 3, holdout="style")
    with pytest.raises(ValueError, match="questions only"):
        SceneCaptions("train", 3, holdout="hop")
    with pytest.raises(ValueError, match="empty"):
        SceneCaptions("train", 0)
    with pytest.raises(IndexError):
        SceneCaptions("train", 3)[3]


def test_random_helpers_are_uniform() -> None:
    rng = Random(0)
    counts = np.bincount([pick(rng, range(5)) for _ in range(20_000)], minlength=5)
    assert np.abs(counts / 4000 - 1).max() < 0.08
    firsts = np.bincount([shuffled(rng, range(5))[0] for _ in range(20_000)], minlength=5)
    assert np.abs(firsts / 4000 - 1).max() < 0.08
    assert item_rng("a", 1).random() != item_rng("a", 2).random()
    kinds = {any_thing(rng, SHAPES, ("star",)).kind for _ in range(20)}
    assert kinds == {"star"}


def test_position_does_not_tell_the_order_of_things() -> None:
    """In a crowd the first to be placed could stand anywhere and the last only near the rim."""
    rng = Random(1)
    marked, others = Thing("star", "red", "large"), [Thing("ring", "blue", "large")] * 4

    def from_centre(things: list[Thing]) -> float:
        star = next(t for t in furnish(rng, SHAPES, things).things if t.kind == "star")
        return (star.cx - 0.5) ** 2 + (star.cy - 0.5) ** 2

    first = np.mean([from_centre([marked, *others]) for _ in range(1500)])
    last = np.mean([from_centre([*others, marked]) for _ in range(1500)])
    assert abs(first - last) < 0.005, (first, last)


@pytest.mark.parametrize("holdout", ["combo", "relation", "count", "size"])
def test_training_never_shows_what_the_test_always_shows(holdout: str) -> None:
    def shows(scene: Scene) -> bool:
        kinds = {(t.kind, t.colour in SHAPES.colours[:4]) for t in scene.things}
        return {
            "combo": ("triangle", False) in kinds or ("star", True) in kinds,
            "relation": shows_held_relation(scene),
            "count": four_circles(scene),
            "size": len(scene.things) > 4,
        }[holdout]

    for split, expected in (("train", False), ("control", False), ("test", True)):
        data = SceneCaptions(split, 60, holdout=holdout)
        for i in range(60):
            scene, _, caption = data.scene(i)
            assert shows(scene) is expected
            assert is_true(caption, scene)
            if holdout == "count" and expected:
                assert "four circles" in caption
            if holdout == "relation" and expected:
                assert any(a in caption and b in caption for a, b in HELD_PAIRS)


COLOUR_RGB = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (36, 84, 204),
    "yellow": (240, 200, 20),
    "purple": (135, 55, 165),
    "orange": (245, 125, 15),
    "cyan": (25, 185, 205),
    "gray": (120, 120, 120),
}


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_small_pictures_hold_every_thing_even_at_their_edge(world: str) -> None:
    for sample in map(SceneCaptions("train", 300, 32, world).__getitem__, range(300)):
        assert sample.image is not None and sample.boxes is not None
        assert sample.image.shape == (3, 32, 32)
        assert (sample.boxes >= 0).all() and (sample.boxes <= 32).all()


def test_scenes_of_few_things_stay_few_and_impossible_numbers_are_refused() -> None:
    data = SceneCaptions("train", 200, most=2)
    counts = {len(data.scene(i)[0].things) for i in range(200)}
    assert counts == {1, 2}
    with pytest.raises(ValueError, match="most 7 things: this split has 1 to 6"):
        SceneCaptions("train", 200, most=7)
