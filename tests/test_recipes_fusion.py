"""Recipes that read pictures and words together: batches, figures, binding, held-out splits."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from minibeit3 import PRESETS
from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.data.sample import Sample
from minibeit3.data.scene_pairs import BindingPairs
from minibeit3.data.scene_questions import TYPES
from minibeit3.data.scene_text import is_true
from minibeit3.data.scenes import from_dict
from minibeit3.recipe import Setup
from minibeit3.recipes import RECIPES, open_recipe
from minibeit3.recipes.binding import captioned, crossed, own, winoground
from minibeit3.recipes.fusion import LATE, questions_batch, statements_batch, vqa_figures
from minibeit3.text_tokenizer import TextTokenizer

CONFIG = replace(PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)
TOKENIZER = TextTokenizer.lab()


def setup(**changes: Any) -> Setup:
    return Setup(config=CONFIG, tokenizer=TOKENIZER, **changes)


def figures_of(name: str, limit: int = 24, **changes: Any) -> dict[str, float]:
    """Figures of the recipe with a fresh nano model."""
    recipe = open_recipe(name, setup(**changes))
    model = recipe.build(build_backbone(CONFIG, generator_of(0)), generator_of(1)).eval()
    with torch.inference_mode():
        return recipe.evaluate(model, limit)


def question(key: str, answer: str, kind: str, twin: str | None = None) -> Sample:
    return Sample(
        key=key,
        image=torch.zeros(3, 8, 8, dtype=torch.uint8),
        texts=("is there a star?",),
        answers={answer: 1.0},
        info={"type": kind, "twin": twin},
    )


@pytest.mark.parametrize(
    "name", ["emoji-vqa", "scenes-nlvr2", "binding", "binding-dual", "scenes-retrieval"]
)
def test_every_figure_is_a_share_and_every_goal_names_one(name: str) -> None:
    figures = figures_of(name)
    shares = {k: v for k, v in figures.items() if k not in ("pictures", "texts")}
    assert all(0 <= value <= 1 for value in shares.values())
    goals = open_recipe(name, setup()).goals
    assert {goal for goal in goals if "/" not in goal} <= figures.keys()


def test_every_name_leads_to_a_function() -> None:
    for place in RECIPES.values():
        file, _, function = place.partition(":")
        path = Path(__file__).parents[1] / f"minibeit3/recipes/{file}.py"
        assert f"def {function}(setup: Setup)" in path.read_text(), place


def test_an_answer_has_its_score_in_its_own_column_and_an_unknown_one_is_refused() -> None:
    samples = [question("a", "no", "exist"), question("b", "yes", "exist")]
    batch = questions_batch(samples, setup(), ("yes", "no", "red"))
    assert batch.scores.tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="b: answer 'yes' is not among the 2 known answers"):
        questions_batch(samples, setup(), ("no", "red"))


def test_twins_count_only_together_and_types_apart() -> None:
    samples = [
        question("a", "yes", "exist", "b"),
        question("b", "no", "exist", "a"),
        question("c", "red", "colour", "d"),
        question("d", "blue", "colour", "c"),
        question("e", "two", "count"),
    ]
    figures = vqa_figures(samples, ["yes", "no", "red", "red", "two"])
    assert figures["accuracy"] == 0.8 and figures["pairs"] == 0.5
    assert figures["accuracy/colour"] == 0.5 and figures["accuracy/exist"] == 1


def test_a_holdout_trains_without_what_its_test_shows() -> None:
    recipe = open_recipe("scenes-vqa", setup(holdout="combo"))
    early = ("red", "green", "blue", "yellow")
    for index in range(30):
        scene: Any = recipe.samples[index].info["scene"]
        triangles = [thing for thing in scene["things"] if thing["kind"] == "triangle"]
        assert all(thing["colour"] in early for thing in triangles)
    figures = figures_of("scenes-vqa", holdout="combo")
    assert figures["gap"] == figures["control/accuracy"] - figures["held/accuracy"]


def test_statements_need_a_truth() -> None:
    sample = open_recipe("scenes-nlvr2", setup()).samples[0]
    assert statements_batch([sample], setup()).truths.tolist() == [sample.label]
    with pytest.raises(ValueError, match="has no label"):
        statements_batch([replace(sample, label=None)], setup())


def test_crossed_pairs_stand_own_other_other_own() -> None:
    samples = [BindingPairs("val", 6)[i] for i in range(6)]
    batch = crossed(samples, setup())
    row = 0
    for sample in samples:
        for scene, picture in (("scene", sample.image), ("scene_b", sample.image_b)):
            for caption in sample.texts:
                told = TOKENIZER.decode(batch.text[row])
                assert told == caption and picture is not None
                pixels = (batch.image[row] * 127.5 + 127.5).round().byte()
                assert torch.equal(pixels, picture)
                data: Any = sample.info[scene]
                assert (row % 4 in (0, 3)) == is_true(caption, from_dict(data))
                row += 1
    assert row == len(batch.image)


def test_binding_hides_exactly_the_words_that_its_captions_do_not_share() -> None:
    samples = [BindingPairs("val", 30)[i] for i in range(30)]
    batch, wanted = own(samples, setup()), []
    for one, other in ((s.texts[i], s.texts[1 - i]) for s in samples for i in (0, 1)):
        words = zip(one.split(), other.split(), strict=True)
        wanted.append([a for a, b in words if a != b])
    for text, hidden, words in zip(batch.text, batch.hidden, wanted, strict=True):
        assert words and TOKENIZER.decode(text[hidden]).split() == words
    assert torch.equal(crossed(samples, setup()).hidden[::4], batch.hidden[::2])


def test_captioned_pairs_keep_picture_and_caption_together() -> None:
    samples = [BindingPairs("val", 4)[i] for i in range(4)]
    batch = captioned(samples, setup())
    for row, (sample, side) in enumerate(itertools.product(samples, (0, 1))):
        assert TOKENIZER.decode(batch.text[row]) == sample.texts[side]
        picture = (sample.image, sample.image_b)[side]
        pixels = (batch.image[row] * 127.5 + 127.5).round().byte()
        assert picture is not None and torch.equal(pixels, picture)


def test_winoground_scores_are_those_of_its_definition() -> None:
    scores = torch.randn(50, 2, 2, generator=generator_of(0))
    found = winoground(scores)
    for item, s in enumerate(scores.tolist()):  # s[picture][caption]
        text = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        image = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        expected = {"text": text, "image": image, "group": text and image}
        assert {name: bool(hits[item]) for name, hits in found.items()} == expected
    assert not any(sum(hits) for hits in winoground(torch.zeros(5, 2, 2)).values())


def easy_vqa(root: Path, answers: list[str]) -> Path:
    """A tiny folder in the layout of the easy-vqa package."""
    (root / "answers.txt").write_text("\n".join(answers))
    for split in ("train", "test"):
        (root / split / "images").mkdir(parents=True)
        rows = [["is there a circle?", "yes", 0], ["what colour is it?", "red", 1]]
        (root / split / "questions.json").write_text(json.dumps(rows))
        for i in (0, 1):
            Image.new("RGB", (64, 64), "red").save(root / split / "images" / f"{i}.png")
    return root


def test_easy_vqa_reads_the_users_folder_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    root = easy_vqa(tmp_path, ["yes", "no", "red"])
    assert open_recipe("easy-vqa", setup(data=root)).labels == ("yes", "no", "red")
    figures = figures_of("easy-vqa", data=root)
    assert {"accuracy", "accuracy/yes-no", "accuracy/other"} == figures.keys()
    (root / "train/questions.json").write_text("[]")
    with pytest.raises(ValueError, match="easy-VQA train: the split is empty"):
        open_recipe("easy-vqa", setup(data=root))
    with pytest.raises(ValueError, match="no folder"):
        open_recipe("easy-vqa", setup(data=root / "none"))


def test_half_of_the_questions_to_learn_from_are_about_few_things() -> None:
    for name, few in (("scenes-vqa", (1, 2, 3)), ("emoji-vqa", (2, 3))):
        parts: Any = cast(Any, open_recipe(name, setup()).samples).datasets
        assert [data.rule.counts[1] for data in parts[1:]] == list(few)
        assert sum(map(len, parts[1:])) == pytest.approx(len(parts[0]), rel=1e-5)


def test_long_runs_ask_often_what_is_learned_late() -> None:
    recipe = open_recipe("scenes-vqa-long", setup())
    for part in cast(Any, recipe.samples).datasets:
        assert {kind: part.types.count(kind) for kind in TYPES} == {
            kind: LATE.get(kind, 1) for kind in TYPES
        }
    told = Counter(str(recipe.samples[i].info["type"]) for i in range(0, 200, 2))
    assert told["relation"] > 2 * told["colour"]
    unseen = open_recipe("scenes-vqa-long", setup(holdout="hop"))
    assert all("hop" not in part.types for part in cast(Any, unseen.samples).datasets)
