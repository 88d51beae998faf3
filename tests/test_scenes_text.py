"""Captions: every generated one is true, the checker rejects false ones, the grammar is closed."""

from collections import Counter
from random import Random

import pytest

from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_text import (
    GRAMMARS,
    Count,
    Listing,
    Phrase,
    Relation,
    canonical_caption,
    caption_distribution,
    draw_caption,
    is_true,
    parse_caption,
)
from minibeit3.data.scenes import SHAPES, Scene, Thing

SCENE = Scene(
    "shapes",
    "white",
    (
        Thing("star", "red", "small", 0.2, 0.5),
        Thing("ring", "blue", "large", 0.7, 0.5),
        Thing("ring", "red", "small", 0.75, 0.8),
    ),
)


@pytest.mark.parametrize(
    ("caption", "truth"),
    [
        ("a small red star and a large blue ring", True),
        ("a large blue ring and a red star", True),
        ("a red shape and a red shape", True),
        ("a red star and a red star", False),  # one star cannot be two
        ("a blue star", False),
        ("the star is left of the blue ring", True),
        ("the star is left of the ring", False),  # two rings: "the ring" names nothing
        ("the blue ring is right of the star", True),
        ("the blue ring is above the star", False),  # level: the relation is unclear
        ("the small ring is below the star", True),
        ("the blue ring is left of the red ring", False),  # 0.05 apart
        ("two rings and one star", True),
        ("two red shapes", True),
        ("one ring", False),
        ("zero crosses", True),
        ("two ring", False),  # outside the grammar
        ("a star.", False),
        ("", False),
    ],
)
def test_the_checker_agrees_with_a_reader(caption: str, truth: bool) -> None:
    assert is_true(caption, SCENE) is truth


def test_captions_are_parsed_into_claims() -> None:
    star, ring = Phrase("small", "red", "star"), Phrase(kind="ring")
    assert parse_caption("a small red star and a ring", SHAPES) == Listing((star, ring))
    assert parse_caption("the small red star is above the ring", SHAPES) == Relation(
        star, "above", ring
    )
    assert parse_caption("two rings and one small red star", SHAPES) == Count(
        ((2, ring), (1, star))
    )
    with pytest.raises(ValueError, match="'three star' is outside the caption grammar"):
        parse_caption("two rings and three star", SHAPES)


def test_every_caption_the_generator_can_say_is_true() -> None:
    data = SceneCaptions("val", 150)
    for i in range(150):
        scene, grammar, caption = data.scene(i)
        chances = caption_distribution(scene)
        assert caption in GRAMMARS[grammar](scene) and caption in chances
        assert abs(sum(chances.values()) - 1) < 1e-9
        assert all(is_true(said, scene) for said in chances)
        assert is_true(canonical_caption(scene), scene)
        assert caption == caption.lower() and not caption.endswith(".")


def test_captions_are_drawn_as_their_distribution_says() -> None:
    rng, draws = Random(0), 20_000
    seen = Counter(draw_caption(rng, SCENE)[1] for _ in range(draws))
    chances = caption_distribution(SCENE)
    assert set(seen) == set(chances)
    for caption, chance in chances.items():
        assert abs(seen[caption] / draws - chance) < 4 * (chance / draws) ** 0.5


def test_captions_of_other_scenes_are_mostly_false() -> None:
    data = SceneCaptions("val", 120)
    items = [data.scene(i) for i in range(120)]
    wrong = [is_true(caption, other) for _, _, caption in items for other, _, _ in items[:40]]
    assert sum(wrong) / len(wrong) < 0.15


def test_one_changed_word_makes_a_full_list_false() -> None:
    data = SceneCaptions("val", 60)
    for i in range(60):
        scene = data.scene(i)[0]
        colours = {thing.colour for thing in scene.things}
        absent = next(colour for colour in SHAPES.colours if colour not in colours)
        words = canonical_caption(scene).split()
        words[2] = absent
        assert not is_true(" ".join(words), scene)


def test_the_canonical_caption_lists_large_before_small_and_left_before_right() -> None:
    assert canonical_caption(SCENE) == (
        "a large blue ring and a small red star and a small red ring"
    )
