"""Retrieval recipes: what is trained, what counts as one picture, what counts as found."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import PRESETS
from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.data.emoji import Emoji, identical
from minibeit3.recipe import Setup
from minibeit3.recipes import open_recipe
from minibeit3.recipes.dual import emoji_batch, retrieval_figures, scenes_batch, trained_emoji
from minibeit3.text_tokenizer import TextTokenizer

CONFIG = replace(PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)
TOKENIZER = TextTokenizer.lab()


def setup(**changes: Any) -> Setup:
    return Setup(config=CONFIG, tokenizer=TOKENIZER, **changes)


def test_training_shows_neither_held_out_concepts_nor_the_far_style() -> None:
    part = trained_emoji(64)
    shown = [part.samples.items[i] for i in part.indices]
    assert {style for style, _ in shown} == {"noto", "twemoji", "fluent3d"}
    for holdout in ("concept", "composition"):
        held = {c.code for _, c in Emoji(("noto",), "test", holdout).items}
        assert held and not held & {concept.code for _, concept in shown}


def test_the_near_style_is_kept_out_of_training_and_tested() -> None:
    recipe = open_recipe("emoji-retrieval", setup(holdout="near"))
    keys = {recipe.samples[i].key.split("/")[1] for i in range(0, len(recipe.samples), 97)}
    assert keys == {"noto", "fluent3d"}
    model = recipe.build(build_backbone(CONFIG, generator_of(0)), generator_of(1)).eval()
    with torch.inference_mode():
        figures = recipe.evaluate(model, 12)
    assert {"near/image to text@1", "far/text to image@10", "concept/class names"} <= figures.keys()


def test_a_right_vector_finds_its_text_and_a_wrong_one_does_not() -> None:
    vectors, names = torch.eye(20), [f"{i}" for i in range(20)]
    figures = retrieval_figures(vectors, names, vectors, names)
    assert figures["image to text@1"] == figures["text to image@1"] == 1
    figures = retrieval_figures(vectors, names, vectors.roll(1, 0), names)
    assert figures["image to text@1"] == figures["text to image@1"] == 0
    blind = F.normalize(torch.ones(20, 4), dim=-1)
    assert (
        retrieval_figures(blind, names, blind, names)["image to text@5"] == 0
    )  # ties find nothing


def test_two_names_of_one_drawing_are_both_right() -> None:
    image, text = torch.eye(3)[:2], torch.eye(3)
    figures = retrieval_figures(image, ["a", "b"], text, ["b", "a", "a"])
    # picture 0 is nearest to text 0, which is b's; picture 1 to text 1, which is a's
    assert figures["image to text@1"] == 0
    figures = retrieval_figures(image, ["a", "b"], text, ["a", "b", "a"])
    assert figures["image to text@1"] == 1 and figures["texts"] == 3


def test_rows_that_mean_the_same_share_their_number() -> None:
    data = Emoji(("openmoji",))
    codes = next(iter(identical("openmoji").values()))[:2]
    rows = [i for i, (_, c) in enumerate(data.items) if c.code in codes] + [0]
    ids = emoji_batch([data[i] for i in rows], setup(), generator_of(0)).ids.tolist()
    assert ids[0] == ids[1] != ids[2]
    scene = open_recipe("scenes-retrieval", setup()).samples[0]
    batch = scenes_batch([scene, scene], setup())
    assert batch.ids.tolist() == [1, 1]
    assert TOKENIZER.decode(batch.text[0]) == scene.info["canonical"]


def test_a_batch_of_emoji_depends_on_its_generator_alone() -> None:
    part = trained_emoji(64)
    samples = [part[i] for i in range(6)]
    one, again, other = (emoji_batch(samples, setup(), generator_of(g)) for g in (0, 0, 1))
    assert torch.equal(one.image, again.image) and torch.equal(one.text, again.text)
    assert not torch.equal(one.image, other.image)


def test_retrieval_has_no_blind_control() -> None:
    with pytest.raises(ValueError, match="has no blind 'image': there are none"):
        open_recipe("scenes-retrieval", setup(blind="image"))
