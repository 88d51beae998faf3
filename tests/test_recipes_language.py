"""Recipes of the language mode: which words are marked, what is hidden, what an oracle reaches."""

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
from minibeit3.data.lemmas import LemmaSentences, tags_of
from minibeit3.data.sample import Sample
from minibeit3.finetune import evaluate_saved, finetune, prepare
from minibeit3.objective import MaskedDataModel
from minibeit3.recipe import Recipe, Setup, first
from minibeit3.recipes import open_recipe
from minibeit3.recipes.language import best_word, hide_some, tagged_batch, tags_of_words
from minibeit3.references_linear import tfidf_svm
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig

WORDS = TextTokenizer.lab()
CONFIG = replace(PRESETS["tiny"], depth=1, width=32, ffn_width=32, heads=2, fusion_layers=1)
PLAN = TrainConfig(steps=3, batch_size=4, lr=1e-3, dtype="float32", save_every=0, log_every=1)


def setup(**changes: Any) -> Setup:
    return Setup(config=CONFIG, tokenizer=WORDS, **changes)


@pytest.fixture(scope="module")
def sentences() -> LemmaSentences:
    return LemmaSentences("test")


@pytest.fixture(scope="module")
def glosses() -> Recipe:
    return open_recipe("glosses", setup(labels=300))


class Oracle(nn.Module):
    """Knows the answer to every text by its ids."""

    def __init__(self, text: Tensor, real: Tensor, answers: Tensor) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        rows = zip(text, real, answers, strict=True)
        self.answers = {tuple(ids[ok].tolist()): answer for ids, ok, answer in rows}

    def forward(self, text: Tensor, real: Tensor) -> Tensor:
        found = [self.answers[tuple(ids[ok].tolist())] for ids, ok in zip(text, real, strict=True)]
        return torch.stack([answer[: text.shape[1]] for answer in found])


@pytest.mark.parametrize(
    ("sentence", "lemma", "tags"),
    [
        ("She uncrossed her legs", "uncross", (0, 1, 0, 0)),
        ("is everything all right?", "all right", (0, 0, 1, 2)),
        ("making cakes", "make", (1, 0)),
        ("the babies cried", "cry", (0, 0, 1)),
        ("a God-given right; God given", "god", (0, 0, 0, 1, 0)),
        ("he gives in, she gives", "give in", (0, 0, 0, 0, 0)),
        ("the cat saw a cat", "cat", (0, 1, 0, 0, 1)),
        ("a catalog", "cat", (0, 0)),
    ],
)
def test_the_lemma_is_marked_inflected_at_its_end_or_not_at_all(
    sentence: str, lemma: str, tags: tuple[int, ...]
) -> None:
    assert tags_of(sentence.split(), lemma) == tags


def test_every_sentence_has_marked_and_unmarked_words_and_one_split(
    sentences: LemmaSentences,
) -> None:
    assert len(sentences) > 1000
    for _, words, tags, lemma in sentences.items:
        assert len(words) == len(tags) and {0, 1} <= set(tags)
        assert tags_of(words, lemma) == tags
    trained = {words for _, words, _, _ in LemmaSentences("train").items}
    assert not trained & {words for _, words, _, _ in sentences.items}
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        LemmaSentences("dev")


def test_pieces_of_words_are_the_pieces_of_the_sentence(sentences: LemmaSentences) -> None:
    samples = [sentences[i] for i in range(0, len(sentences), 20)]
    batch = tagged_batch(samples, setup())
    ids, real = WORDS.batch([sample.texts[0] for sample in samples], 64)
    assert torch.equal(batch.text, ids) and torch.equal(batch.real, real)
    assert (batch.tags[~batch.real] == -100).all() and (batch.tags[:, 0] == -100).all()


def test_tags_come_back_from_tokens_and_what_is_cut_off_is_outside(
    sentences: LemmaSentences,
) -> None:
    samples = [sentences[i] for i in range(50)]
    batch = tagged_batch(samples, setup())
    back = tags_of_words(batch.tags, batch.tags, samples)
    assert back == [list(sample.info["tags"]) for sample in samples]  # pyright: ignore
    long = Sample(key="long", info={"words": ("dog",) * 90, "tags": (1,) * 90})
    cut = tagged_batch([long], setup())
    assert cut.text.shape[1] == 64
    assert tags_of_words(cut.tags, cut.tags, [long]) == [[1] * 62 + [0] * 28]
    with pytest.raises(ValueError, match="long: 2 tags for 90 words"):
        tagged_batch([replace(long, info={"words": ("a",) * 90, "tags": (0, 1)})], setup())


def test_an_oracle_tags_every_word_and_simple_rules_find_some(sentences: LemmaSentences) -> None:
    recipe = open_recipe("lemma-tagging", setup(labels=2000))
    batch = tagged_batch(first(sentences, 200), setup())
    oracle = Oracle(batch.text, batch.real, torch.eye(3)[batch.tags.clamp(min=0)])
    assert recipe.evaluate(oracle, 200) == {"F1": 1}
    lines = recipe.references(200)
    assert set(lines) == {"rarest word/F1", "longest word/F1"}
    assert all(0.1 < line < 0.8 for line in lines.values())
    assert best_word(["a", "cat", "ran"], len) == [0, 1, 0]


def test_an_oracle_knows_every_subject_and_tfidf_stands_above_the_majority(
    glosses: Recipe,
) -> None:
    from minibeit3.data.glosses import Glosses

    samples = first(Glosses("test", 8), 100)
    text, real = setup().words([sample.texts[0] for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    assert glosses.evaluate(Oracle(text, real, torch.eye(8)[labels]), 100) == {"top1": 1}
    lines = glosses.references(100)
    assert 0.1 < lines["majority/top1"] < lines["TF-IDF, linear/top1"] < 0.9
    assert glosses.labels[0] == "noun.animal" and len(list(glosses.samples)) == 300


def test_hidden_words_follow_the_generator_and_specials_stay(glosses: Recipe) -> None:
    samples = [glosses.samples[i] for i in range(60)]
    one, again = (glosses.collate(samples, generator_of(0)) for _ in range(2))
    assert torch.equal(one.text, again.text)
    ids, real = setup().words([sample.texts[0] for sample in samples])
    changed = one.text != ids
    assert (one.text[changed] == WORDS.mask_id).all()
    assert 0.1 < changed.sum() / (real.sum() - 2 * len(samples)) < 0.2
    bare = one._replace(text=torch.tensor([[0, 2, 1]]), real=torch.tensor([[True, True, False]]))
    for seed in range(30):
        assert torch.equal(hide_some(bare, WORDS, generator_of(seed)).text, bare.text)
    with pytest.raises(ValueError, match=r"label None, the head has 0 \.\. 7"):
        glosses.collate([replace(samples[0], label=None)], generator_of(0))


@pytest.mark.parametrize("name", ["glosses", "lemma-tagging"])
def test_a_trained_and_saved_model_scores_as_before(tmp_path: Path, name: str) -> None:
    save_pretrained(MaskedDataModel(build_backbone(CONFIG, generator_of(7))), tmp_path, WORDS)
    job = prepare(name, tmp_path)
    finetune(job, tmp_path / "run", PLAN)
    with torch.inference_mode():
        figures = job.recipe.evaluate(job.model, 20)
    assert evaluate_saved(tmp_path / "run", limit=20)[1] == figures


def test_the_svm_learns_what_words_tell() -> None:
    train = ["a small animal", "a large animal", "a kind of food", "food from rice"] * 3
    found = tfidf_svm(train, [0, 0, 1, 1] * 3, ["an animal of the forest", "cold food"])
    assert found == [0, 1]
