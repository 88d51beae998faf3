"""Statements about two pictures and binding pairs: exact, balanced, with a counted leak."""

from collections import Counter, defaultdict

import pytest

from minibeit3.data.scene_pairs import (
    STATEMENTS,
    BindingPairs,
    SceneStatements,
    four_pairs,
    one_picture_leak,
)
from minibeit3.data.scene_text import is_true
from minibeit3.data.scenes import item_rng


def truth_of(kind: str, left: str, right: str) -> bool:
    """What the statement means, said again and differently."""
    numbers = ("zero", "one", "two", "three", "four")
    return {
        "exactly one": {left, right} == {"yes", "no"},
        "both": (left, right) == ("yes", "yes"),
        "same number": left == right,
        "more": left in numbers and numbers.index(left) > numbers.index(right),
        "only left": (left, right) == ("yes", "no"),
    }[kind]


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_every_statement_is_true_of_two_pairs_and_false_of_two(world: str) -> None:
    data = SceneStatements("val", 200, world=world)
    groups: defaultdict[int, list[bool]] = defaultdict(list)
    statements: defaultdict[int, set[str]] = defaultdict(set)
    for i in range(200):
        kind, statement, truth, (left, right), _ = data.pose(i)
        assert truth is truth_of(kind, left, right)
        groups[i // 4].append(truth)
        statements[i // 4].add(statement)
    assert all(sorted(truths) == [False, False, True, True] for truths in groups.values())
    assert all(len(said) == 1 for said in statements.values())


def test_statement_types_come_as_often_as_they_are_named() -> None:
    data = SceneStatements("train", 4000, kinds=("both", "both", "both", "more"))
    told = Counter(data.pose(i)[0] for i in range(0, 4000, 4))
    assert set(told) == {"both", "more"} and 2.3 < told["both"] / told["more"] < 4.0
    with pytest.raises(ValueError, match="statement type 'neither' does not exist: choose from ex"):
        SceneStatements("train", 4, kinds=("both", "neither"))


def test_statements_agree_with_their_pictures() -> None:
    data = SceneStatements("val", 200)
    for i in range(200):
        kind, statement, truth, _, (left, right) = data.pose(i)
        if kind == "exactly one":
            claim = statement.removeprefix("exactly one image contains ")
            assert truth is (is_true(claim, left) != is_true(claim, right))
        if kind == "both":
            claim = statement.removeprefix("both images contain ")
            assert truth is (is_true(claim, left) and is_true(claim, right))
        if kind == "only left":
            claim = statement.removesuffix(" only in the left image")
            assert truth is (is_true(claim, left) and not is_true(claim, right))


def test_what_one_picture_gives_away_is_what_the_arithmetic_says() -> None:
    expected = {"exactly one": 0.5, "same number": 0.5, "both": 0.75, "more": 0.625}
    expected["only left"] = 0.75
    items = [
        (kind, *pair)
        for kind in STATEMENTS
        for i in range(4000)
        for pair in four_pairs(item_rng("leak", kind, i), kind)
    ]
    for kind, sides in one_picture_leak(items).items():
        assert sides == pytest.approx((expected[kind], expected[kind]), abs=0.01), kind


def test_samples_hold_two_pictures_and_their_truth() -> None:
    sample = SceneStatements("val", 8, size=32)[5]
    assert sample.image is not None and sample.image_b is not None
    assert sample.image.shape == sample.image_b.shape == (3, 32, 32)
    assert not sample.image.equal(sample.image_b)
    assert sample.label in (0, 1) and len(sample.texts) == 1
    assert sample.info["group"] == "shapes/statement/val/1"


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_binding_captions_have_the_same_words_and_each_fits_one_picture(world: str) -> None:
    data = BindingPairs("test", 120, world=world)
    kinds = Counter()
    for i in range(120):
        kind, captions, scenes = data.pose(i)
        kinds[kind] += 1
        words = [
            Counter(w.replace("an", "a") if w == "an" else w for w in c.split()) for c in captions
        ]
        assert words[0] == words[1] and captions[0] != captions[1]
        fits = [[is_true(caption, scene) for scene in scenes] for caption in captions]
        assert fits == [[True, False], [False, True]]
        same_places = [{(t.cx, t.cy) for t in scene.things} for scene in scenes]
        assert same_places[0] == same_places[1]
        for name in ("kind", "colour", "size"):
            bags = [Counter(getattr(t, name) for t in scene.things) for scene in scenes]
            assert bags[0] == bags[1]
    assert set(kinds) == set(data.types) and min(kinds.values()) > 20


def test_binding_samples_pair_picture_and_caption() -> None:
    sample = BindingPairs("test", 4)[2]
    assert sample.image is not None and sample.image_b is not None
    assert len(sample.texts) == 2 and not sample.image.equal(sample.image_b)
    with pytest.raises(ValueError, match="empty"):
        BindingPairs("test", 0)
    with pytest.raises(ValueError, match="belongs to a holdout"):
        SceneStatements("control", 4)
