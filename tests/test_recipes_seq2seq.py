"""Captioning recipes: judged by meaning, refused without captions, and no word leaks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3 import PRESETS
from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.data.sample import Sample
from minibeit3.modes import ImageCaptioner, seq2seq
from minibeit3.recipe import Setup
from minibeit3.recipes import open_recipe
from minibeit3.recipes import seq2seq as recipes
from minibeit3.text_tokenizer import TextTokenizer

CONFIG = replace(PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)
TOKENIZER = TextTokenizer.lab()
WORDS = ("red", "blue", "green", "star", "ring", "cross", "circle", "square")


def setup(**changes: Any) -> Setup:
    return Setup(config=CONFIG, tokenizer=TOKENIZER, **changes)


def captioner(seed: int = 0) -> ImageCaptioner:
    backbone = build_backbone(CONFIG, generator_of(seed))
    return ImageCaptioner(backbone, mask_id=TOKENIZER.mask_id, generator=generator_of(seed, 1))


def echoes(n: int, seed: int) -> list[Sample]:
    """Grey pictures with captions "a a": only the second word tells the first one."""
    words = [WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator_of(seed))]
    grey = torch.full((3, 16, 16), 128, dtype=torch.uint8)
    return [Sample(key=f"{i}", image=grey, texts=(f"{w} {w}",)) for i, w in enumerate(words)]


def said(sample: Sample) -> str:
    return sample.texts[0]


class Reader(nn.Module):
    """Guesses the word that stands `offset` places away, as a model does that has learned to."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset, self.device = offset, nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor, text: Tensor, real: Tensor) -> Tensor:
        return F.one_hot(text.roll(-self.offset, dims=1), TOKENIZER.vocab_size).float()


class Both(nn.Module):
    """Reads the word before where it is one of the echo's, else the word after."""

    def __init__(self) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor, text: Tensor, real: Tensor) -> Tensor:
        before, after = text.roll(1, dims=1), text.roll(-1, dims=1)
        told = torch.where(before == TOKENIZER.bos_id, after, before)
        return F.one_hot(told, TOKENIZER.vocab_size).float()


def see_all(image_tokens: int, text_tokens: int, device: Any = None) -> Tensor:
    """The wrong rule: every token sees every token."""
    size = image_tokens + text_tokens
    return torch.ones(size, size, dtype=torch.bool, device=device)


@torch.no_grad()
def forced(model: Any) -> dict[str, float]:
    return recipes.forced_figures(model, echoes(300, 999), setup(), said)


def test_a_model_that_reads_later_words_shows_as_a_leak_and_as_a_jump_of_accuracy() -> None:
    honest, leaking = forced(Reader(-1)), forced(Reader(1))
    assert honest["leak"] == 0 and abs(honest["forced"] - 1 / 3) < 0.1  # the second word alone
    assert leaking["leak"] > 0.5
    both = forced(Both())
    assert both["forced"] > honest["forced"] + 0.2 and both["leak"] > 0.2


@torch.no_grad()
def test_under_the_caption_rule_alone_later_words_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = captioner().eval()
    image = setup().pixels([sample.image for sample in echoes(2, 0)])
    text, real = setup().words(["red star", "red ring"])

    def moved() -> float:
        first = model(image, text, real)[:, 1]
        return (first[0] - first[1]).abs().max().item()

    assert moved() < 1e-6
    monkeypatch.setattr(seq2seq, "caption_rule", see_all)
    assert moved() > 1e-5


def test_true_captions_score_one_and_false_ones_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, told = open_recipe("scenes-captions", setup()), recipes.canonical
    monkeypatch.setattr(recipes, "tell", lambda m, samples, s, b: [told(x) for x in samples])
    with torch.inference_mode():
        figures = recipe.evaluate(captioner().eval(), 20)
        assert figures["greedy/true"] == figures["beam 3/exact"] == 1 and figures["leak"] == 0
        wrong = "a small red ring and a red red ring"
        monkeypatch.setattr(recipes, "tell", lambda m, samples, s, b: [wrong for _ in samples])
        figures = recipe.evaluate(captioner().eval(), 20)
    assert figures["greedy/true"] == figures["beam 3/exact"] == 0


def test_names_of_emoji_can_be_said_back(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = open_recipe("emoji-captions", setup())

    def echo(_: object, samples: list[Sample], s: object, b: object) -> list[str]:
        return [TOKENIZER.decode(TOKENIZER.token_ids(recipes.name(x))) for x in samples]

    monkeypatch.setattr(recipes, "tell", echo)
    with torch.inference_mode():
        figures = recipe.evaluate(captioner().eval(), 300)
    assert figures["greedy/exact"] > 0.97 and figures["greedy/a word of it"] > 0.97


def test_references_are_named_like_the_figures_they_stand_beside() -> None:
    lines = open_recipe("scenes-captions", setup()).references(10)
    assert {"most common caption/exact", "nearest pixels/true"} <= lines.keys()
    assert all(0 <= value <= 10 for value in lines.values())


def test_a_picture_without_a_caption_is_refused_by_name() -> None:
    silent = Sample(key="mute", image=torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"1 of 1 pictures have no caption: \['mute'\]"):
        recipes.captions_batch([silent], setup(), said, generator_of(0))


def test_the_caption_is_the_target_and_only_hidden_places_differ_from_it() -> None:
    recipe = open_recipe("scenes-captions", setup())
    samples = [recipe.samples[i] for i in range(5)]
    batch = recipe.collate(samples, generator_of(3))
    assert [TOKENIZER.decode(row) for row in batch.targets] == [
        recipes.canonical(s) for s in samples
    ]
    assert (batch.shown == batch.targets)[~batch.hidden].all()
    assert torch.equal(batch.shown, recipe.collate(samples, generator_of(3)).shown)
