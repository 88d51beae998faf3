"""Questions: exact answers, no hint in the words, twins that differ by an edit."""

from collections import Counter, defaultdict
from functools import cache

import pytest

from minibeit3.data.scene_questions import (
    ANSWERS,
    COUNTS,
    TYPES,
    Question,
    answer_to,
    parse_question,
    types_of,
)
from minibeit3.data.scene_splits import HELD_PAIRS, four_circles, rule_for
from minibeit3.data.scene_text import Phrase, related
from minibeit3.data.scene_vqa import SceneVQA, scene_for
from minibeit3.data.scenes import SHAPES, Scene, Thing, fits, item_rng, world_named

SCENE = Scene(
    "shapes",
    "white",
    (
        Thing("star", "red", "small", 0.5, 0.5),
        Thing("ring", "blue", "large", 0.2, 0.5),
        Thing("ring", "red", "small", 0.75, 0.8),
    ),
)
Posed = tuple[Question, str, Scene, tuple[str, ...]]


@cache
def posed(split: str, n: int, world: str = "shapes") -> tuple[Posed, ...]:
    data = SceneVQA(split, n, world=world)
    return tuple(data.pose(i) for i in range(n))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("is there a red star?", "yes"),
        ("is there a blue star?", "no"),
        ("how many rings are there?", "two"),
        ("how many crosses are there?", "zero"),
        ("how many red shapes are there?", "two"),
        ("what colour is the star?", "red"),
        ("what colour is the ring?", None),  # two rings
        ("what colour is the cross?", None),
        ("what shape is the blue one?", "ring"),
        ("what shape is the small blue one?", None),
        ("what size is the blue ring?", "large"),
        ("is the blue ring left of the star?", "yes"),
        ("is the star left of the blue ring?", "no"),
        ("is the star above the blue ring?", None),  # level
        ("are there more rings than stars?", "yes"),
        ("are there more stars than rings?", "no"),
        ("are the star and the large ring the same colour?", "no"),
        ("are the star and the small ring the same colour?", "yes"),
        ("what colour is the shape left of the star?", "blue"),
        ("what colour is the shape above the star?", None),
    ],
)
def test_answers_agree_with_a_reader(text: str, answer: str | None) -> None:
    question = parse_question(text, SHAPES)
    assert question.ask(SHAPES) == text
    assert answer_to(question, SCENE) == answer


def test_there_are_23_answers() -> None:
    assert len(ANSWERS) == len(set(ANSWERS)) == 23


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_every_item_is_answered_by_its_scene_and_read_back_from_its_words(world: str) -> None:
    vocabulary = world_named(world)
    items = posed("val", 300, world)
    assert {question.type for question, *_ in items} == set(types_of(vocabulary))
    for question, answer, scene, options in items:
        assert answer_to(question, scene) == answer
        assert answer in options and set(options) <= set(ANSWERS)
        assert parse_question(question.ask(vocabulary), vocabulary) == question
        assert fits(vocabulary, scene.things)


@pytest.mark.slow
def test_answers_are_uniform_within_every_type() -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, answer, _, _ in posed("train", 5400):
        counts[question.type][answer] += 1
    assert set(counts) == set(TYPES)
    for kind, seen in counts.items():
        mean = seen.total() / len(seen)
        chi_square = sum((n - mean) ** 2 / mean for n in seen.values())
        degrees = len(seen) - 1
        assert chi_square < degrees + 4 * (2 * degrees) ** 0.5 + 4, (kind, seen)


@pytest.mark.slow
def test_an_answer_does_not_show_in_the_number_of_things() -> None:
    sizes: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for question, answer, scene, _ in posed("train", 5400)[::2]:
        sizes[question.type, answer].append(len(scene.things))
    for kind in ("exist", "count", "more", "same", "relation"):
        means = [sum(v) / len(v) for (name, _), v in sizes.items() if name == kind]
        assert max(means) - min(means) < 0.45, (kind, means)


@pytest.mark.slow
def test_a_missing_combination_has_its_parts_in_the_picture() -> None:
    for question, answer, scene, _ in posed("train", 5400)[::2]:
        if question.type == "exist" and answer == "no":
            a = question.a
            assert any(t.kind == a.kind for t in scene.things)
            if a.colour:
                assert any(t.colour == a.colour for t in scene.things)


def test_twins_ask_the_same_and_differ_by_few_things_and_in_the_answer() -> None:
    items = posed("val", 300)
    for (q, answer, scene, _), (q2, other, twin, _) in zip(items[::2], items[1::2], strict=True):
        assert q == q2 and answer != other
        assert scene.background == twin.background and len(scene.things) == len(twin.things)
        changed = sum(a != b for a, b in zip(scene.things, twin.things, strict=True))
        assert changed <= (4 if q.type == "count" else 2)
    data = SceneVQA("val", 10)
    for i in range(10):
        assert data[i].info["twin"] == data[i ^ 1].key


@pytest.mark.parametrize("most", [1, 2, 3])
def test_scenes_of_few_things_have_room_for_what_the_answer_needs_alone(most: int) -> None:
    data = SceneVQA("train", 400, most=most)
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(400):
        question, answer, scene, options = data.pose(index)
        assert answer_to(question, scene) == answer and answer in options
        pair = question.type in ("relation", "same", "hop")
        assert len(scene.things) <= max(most, 2 if pair else 1)
        told[question.type][answer] += 1
    assert set(told["count"]) == set(COUNTS[: most + 1])
    for kind in ("exist", "relation", "more", "same"):
        assert told[kind]["yes"] == told[kind]["no"] > 0


def test_the_only_thing_of_a_scene_that_is_not_asked_for_shares_a_word_with_it() -> None:
    data = SceneVQA("train", 60, types=("exist",), most=1)
    for index in range(60):
        question, answer, scene, _ = data.pose(index)
        (thing,) = scene.things
        shared = [getattr(thing, name) == getattr(question.a, name) for name in question.a.said()]
        assert all(shared) if answer == "yes" else any(shared)


def test_samples_carry_the_question_and_one_certain_answer() -> None:
    sample = SceneVQA("val", 4, size=96)[3]
    question, answer, _, options = SceneVQA("val", 4).pose(3)
    assert sample.texts == (question.ask(SHAPES),) and sample.answers == {answer: 1.0}
    assert sample.image is not None and tuple(sample.image.shape) == (3, 96, 96)
    assert sample.info["type"] == question.type and sample.info["choices"] == options


@pytest.mark.parametrize("holdout", ["combo", "relation", "count", "size", "hop"])
def test_held_out_questions_stay_out_of_training(holdout: str) -> None:
    early = set(SHAPES.colours[:4])
    for split in ("train", "control", "test"):
        data = SceneVQA(split, 120, holdout=holdout)
        answers = Counter()
        for i in range(120):
            question, answer, scene, options = data.pose(i)
            assert answer_to(question, scene) == answer and answer in options
            answers[answer] += 1
            kinds = (question.a.kind, question.b.kind)
            horizontal = question.relation in ("left of", "right of")
            about_held = horizontal and (kinds in HELD_PAIRS or kinds[::-1] in HELD_PAIRS)
            held = {
                "combo": any(
                    (t.kind, t.colour in early) in (("triangle", False), ("star", True))
                    for t in scene.things
                ),
                "relation": question.type == "relation" and about_held,
                "count": four_circles(scene),
                "size": len(scene.things) > 4,
                "hop": question.type == "hop",
            }[holdout]
            assert held is (split == "test"), (split, question, scene)
            if holdout == "relation" and split != "test":
                things = scene.things
                assert not any(
                    (a.kind, b.kind) in HELD_PAIRS and related(a, b, "left of")
                    for a in things
                    for b in things
                )
        if holdout == "relation" and split != "train":
            assert answers["yes"] == answers["no"] == 60


def test_impossible_requests_are_named() -> None:
    rule = rule_for(SHAPES, "test", "size")
    with pytest.raises(ValueError, match="found no scene"):
        stars = Question("more", Phrase(kind="star"), Phrase(kind="star"))
        scene_for(item_rng("x"), SHAPES, rule, stars, "yes")
    with pytest.raises(ValueError, match="question type 'hop' is not asked"):
        SceneVQA("train", 3, holdout="hop", types=("hop",))
    with pytest.raises(ValueError, match="question type 'colour' is not asked in the emoji world"):
        SceneVQA("train", 3, world="emoji", types=("colour",))
    with pytest.raises(ValueError, match="most 7 things: this split has 1 to 6"):
        SceneVQA("train", 3, most=7)
    with pytest.raises(ValueError, match="not a question of the shapes world"):
        parse_question("where am i?", SHAPES)


@pytest.mark.slow
def test_no_words_tell_the_answer_by_counting() -> None:
    """A guesser that knows every training question by heart stays at chance on new items."""
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, answer, _, _ in posed("train", 5400):
        votes[question.ask(SHAPES)][answer] += 1
    right = expected = 0.0
    test = posed("test", 3000)
    for question, answer, _, options in test:
        table = votes[question.ask(SHAPES)] or Counter(options[:1])  # never seen: any option
        right += table.most_common(1)[0][0] == answer
        expected += 1 / len(options)
    assert abs(right - expected) / len(test) < 0.02
