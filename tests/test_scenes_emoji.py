"""The emoji world: unambiguous nouns, one style a scene, masks from the drawings' alpha."""

import numpy as np
import pytest
from PIL import Image

from minibeit3.data.emoji import STYLES, concepts, emoji_atlas
from minibeit3.data.emoji_scenes import emoji_world, plural_of
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_questions import answer_to
from minibeit3.data.scene_splits import held_nouns, held_pair
from minibeit3.data.scene_text import Phrase, caption_distribution, is_true, read_phrase
from minibeit3.data.scene_vqa import SceneVQA
from minibeit3.data.scenes import Scene, Thing, boxes, draw, fits, instances, regions

BOX = Image.Resampling.BOX


def test_nouns_are_concrete_and_read_back_from_singular_and_plural() -> None:
    world = emoji_world()
    assert len(world.kinds) > 400
    assert set(world.kinds) <= {concept.name for concept in concepts() if concept.concrete}
    for noun, plural in world.plurals.items():
        for size in ("", "small", "large"):
            phrase = Phrase(size=size, kind=noun)
            assert read_phrase(phrase.say(world), world) == phrase
            assert read_phrase(phrase.say(world, plural=True), world) == phrase
        assert noun == noun.lower() and plural == plural.lower()
    assert not {"black cat", "small airplane"} & set(world.kinds)


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("cat", "cats"),
        ("fish", "fish"),
        ("kitchen knife", "kitchen knives"),
        ("bus", "buses"),
        ("butterfly", "butterflies"),
        ("donkey", "donkeys"),
        ("mouse", "mice"),
    ],
)
def test_plurals(noun: str, plural: str) -> None:
    assert plural_of(noun) == plural


def test_captions_of_emoji_scenes_are_true() -> None:
    data = SceneCaptions("train", 100, world="emoji")
    for i in range(100):
        scene, _, caption = data.scene(i)
        assert fits(emoji_world(), scene.things)
        assert is_true(caption, scene)
        assert all(is_true(said, scene) for said in caption_distribution(scene))


@pytest.mark.parametrize("size", [64, 96, 128])
def test_every_drawing_shows_where_its_box_says(size: int) -> None:
    data = SceneCaptions("val", 30, world="emoji")
    for i in range(30):
        scene = data.scene(i)[0]
        image, covered = draw(scene, size).astype(int), instances(scene, size)
        ground = emoji_world().backgrounds[scene.background]
        assert (image[covered == 0] == ground).all(1).mean() > 0.9
        for thing, box, index in zip(scene.things, boxes(scene, size), range(1, 9), strict=False):
            assert (covered == index).any()
            middle = (box[:2] + box[2:]) / 2 / size
            radius = emoji_world().radii[thing.size]
            assert np.abs(middle - (thing.cx, thing.cy)).max() < radius
        classes = {emoji_world().classes[thing.kind] for thing in scene.things}
        assert set(np.unique(regions(scene, size))) == classes | {0}


def test_shrinking_and_pasting_commute() -> None:
    """A drawing shrunk, then pasted, equals one pasted at full size, then shrunk."""
    world, side = emoji_world(), 20
    index = next(c.index for c in concepts() if c.name == "cat")
    for style in STYLES:
        scene = Scene("emoji", "rose", (Thing("cat", "", "large"),), style)
        top, left, *_ = world.stamp(scene, scene.things[0], 64)
        cell = emoji_atlas(style)[index].astype(np.float32)
        alpha = cell[..., 3:] / 255
        pasted = cell[..., :3] * alpha + np.array(world.backgrounds["rose"]) * (1 - alpha)
        shrunk = [
            np.asarray(Image.fromarray(pasted[..., c].astype("f4")).resize((side, side), BOX))
            for c in range(3)
        ]
        drawn = draw(scene, 64)[top : top + side, left : left + side]
        assert np.abs(drawn - np.stack(shrunk, 2)).max() < 2, style


def test_held_out_style_and_noun_pairs_stay_out_of_training() -> None:
    for split, style_held in (("train", False), ("control", False), ("test", True)):
        data = SceneCaptions(split, 40, world="emoji", holdout="style")
        assert {(data.scene(i)[0].style == "openmoji") for i in range(40)} == {style_held}
        pairs = SceneCaptions(split, 40, world="emoji", holdout="pair")
        for i in range(40):
            kinds = [thing.kind for thing in pairs.scene(i)[0].things]
            assert any(held_pair(a, b) for a in kinds for b in kinds) is style_held
        asked = SceneVQA(split, 40, world="emoji", holdout="pair")
        for i in range(40):
            question = asked.pose(i)[0]
            if question.type == "relation":
                assert held_pair(question.a.kind, question.b.kind) is style_held


def test_all_that_is_held_out_at_once_shows_new_nouns_by_the_new_vendor() -> None:
    new = held_nouns() & set(emoji_world().kinds)
    for split in ("train", "control", "test"):
        data = SceneCaptions(split, 60, world="emoji", holdout="any")
        for scene, *_ in map(data.scene, range(60)):
            held = split == "test"
            assert (scene.style == "openmoji") == held
            assert bool(new & {thing.kind for thing in scene.things}) == held


@pytest.mark.parametrize("split", ["train", "test", "control"])
def test_questions_are_found_when_all_that_an_emoji_test_holds_out_is_left_out(split: str) -> None:
    asked = SceneVQA(split, 60, world="emoji", holdout="any")
    for index in range(60):
        question, answer, scene, _ = asked.pose(index)
        assert answer_to(question, scene) == answer and asked.rule.scene(scene)
