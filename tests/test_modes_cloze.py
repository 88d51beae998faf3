"""The answer as a hidden word: <mask> where the question ends, words that pretraining knows."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch

from minibeit3 import PRESETS, build_backbone
from minibeit3.checkpoint import save_pretrained
from minibeit3.finetune import prepare
from minibeit3.modes import CaptionScorer, ClozeAnswerer, ClozeReasoner
from minibeit3.modes.cloze import with_mask
from minibeit3.objective import MaskedBatch, MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer

WORDS = TextTokenizer.lab()
IDS = WORDS.mask_id, WORDS.eos_id
CONFIG = replace(
    PRESETS["tiny"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1, drop_path=0.0
)
QUESTIONS = ["what colour is the circle?", "is there a large star left of the square?"]
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def answerer(limit: int = 64) -> ClozeAnswerer:
    g = torch.Generator().manual_seed(0)
    backbone = build_backbone(replace(CONFIG, max_text_length=limit), g)
    return ClozeAnswerer(backbone, 4, WORDS.mask_id, WORDS.eos_id, g).eval()


def test_the_question_that_the_backbone_reads_ends_in_a_mask() -> None:
    ids, real, at = with_mask(*WORDS.batch(QUESTIONS, 64), *IDS, 64)
    expected, shown = WORDS.batch([f"{question} <mask>" for question in QUESTIONS], 64)
    assert torch.equal(real, shown) and torch.equal(ids[real], expected[shown])
    assert ids[torch.arange(2), at].tolist() == [WORDS.mask_id] * 2
    text, _ = WORDS.batch(QUESTIONS[:1], 64)  # one text has no padding
    assert torch.equal(with_mask(text, None, *IDS, 64)[0], expected[:1, shown[0]])


@pytest.mark.parametrize("limit", [8, 11, 12])
def test_a_question_that_fills_the_model_loses_words_and_never_the_mask(limit: int) -> None:
    text, real = WORDS.batch(QUESTIONS, limit)
    ids, shown, at = with_mask(text, real, *IDS, limit)
    assert ids.shape[1] <= limit
    for row, place, whole in zip(ids, at, shown, strict=True):
        seen = row[whole].tolist()
        assert seen[-2:] == [WORDS.mask_id, WORDS.eos_id] and seen.index(WORDS.mask_id) == place
    assert answerer(limit)(IMAGE, text, real).isfinite().all()


def test_from_a_pretrained_model_answers_start_as_the_words_it_would_fill_in(tmp_path) -> None:
    torch.manual_seed(0)
    pretrained = MaskedDataModel(build_backbone(CONFIG, torch.Generator().manual_seed(1))).eval()
    save_pretrained(pretrained, tmp_path, WORDS)
    job = prepare("scenes-vqa", tmp_path)
    text, real = WORDS.batch([f"{question} <mask>" for question in QUESTIONS], 64)
    hidden = text == WORDS.mask_id
    batch = MaskedBatch(IMAGE, None, None, text, real, hidden, text, pairs=2)
    with torch.no_grad():
        guess = pretrained(batch)[1]
        own = job.model.eval()(IMAGE, *WORDS.batch(QUESTIONS, 64))
    ids = [WORDS.token_ids(answer) for answer in job.recipe.labels]
    assert all(len(one) == 1 for one in ids)
    logits = (guess.logits - pretrained.mlm_head.bias)[:, [one[0] for one in ids]]
    torch.testing.assert_close(own, logits)
    assert not torch.allclose(own, prepare("scenes-vqa", None).model(IMAGE, text, real)[:, :1])


def test_an_answer_of_several_pieces_starts_as_their_mean() -> None:
    model, words = answerer(), torch.nn.Linear(32, 10)
    model.start_from(words, [[1], [2, 4], [3], [5]])
    torch.testing.assert_close(model.head.weight[1], (words.weight[2] + words.weight[4]) / 2)
    with pytest.raises(ValueError):
        model.start_from(words, [[1], [2]])
    with pytest.raises(ValueError, match="no pieces"):
        model.start_from(words, [[1], [], [3], [5]])


@pytest.mark.parametrize("mask_id", [-1, 2, CONFIG.vocab_size])
def test_ids_that_the_model_lacks_or_needs_twice_are_refused(mask_id: int) -> None:
    backbone = build_backbone(CONFIG, torch.Generator().manual_seed(0))
    for build in (partial(ClozeAnswerer, backbone, 4), partial(ClozeReasoner, backbone)):
        with pytest.raises(ValueError, match=f"mask_id {mask_id} and eos_id 2"):
            build(mask_id)


def test_a_reasoner_reads_what_an_answerer_reads_of_each_picture_and_how_they_differ() -> None:
    answers = answerer()
    model = ClozeReasoner(answers.backbone, *IDS).eval()
    answers.head = cast(Any, torch.nn.Identity())
    for weight in model.head.parameters():
        weight.data.mul_(20)  # a fresh head says too little to compare
    text, real = WORDS.batch(QUESTIONS, 64)
    other = IMAGE.flip(0)
    u, v = answers(IMAGE, text, real), answers(other, text, real)
    expected = model.head(torch.cat([u, v, (u - v).abs(), u * v], dim=-1))
    torch.testing.assert_close(model(IMAGE, other, text, real), expected)
    assert (model(IMAGE, other, text, real) - model(other, IMAGE, text, real)).abs().max() > 1e-3


CAPTIONS = ["a red circle and a blue star", "a star"]


def scorer() -> CaptionScorer:
    g = torch.Generator().manual_seed(0)
    return CaptionScorer(build_backbone(CONFIG, g), WORDS.mask_id, g).eval()


@torch.no_grad()
def test_a_caption_scores_the_sum_over_its_hidden_tokens_all_hidden_at_once() -> None:
    model, (ids, real) = scorer(), WORDS.batch(CAPTIONS, 64)
    hidden = torch.zeros_like(real)
    hidden[0, [2, 3, 6]] = hidden[1, 2] = True
    found = model(IMAGE, ids, real, hidden)
    for row in range(2):
        words, gone = ids[row][real[row]], hidden[row][real[row]]
        shown = words.masked_fill(gone, WORDS.mask_id)
        logits = model.mlm_head(model.backbone(IMAGE[row : row + 1], shown[None]).text[0])
        logs = logits.log_softmax(dim=-1).gather(1, words[:, None])[:, 0]
        assert found[row].item() == pytest.approx(logs[gone].sum().item(), abs=1e-4)
    torch.testing.assert_close(model.loss(IMAGE, ids, real, hidden), -found.sum() / hidden.sum())
    assert model(IMAGE, ids, real, hidden & False).tolist() == [0, 0]  # nothing to guess


def test_a_scorer_goes_on_with_the_pretrained_word_head(tmp_path) -> None:
    torch.manual_seed(0)
    pretrained = MaskedDataModel(build_backbone(CONFIG, torch.Generator().manual_seed(1)))
    save_pretrained(pretrained, tmp_path, WORDS)
    own = prepare("binding", tmp_path).model.mlm_head.state_dict()
    assert all(
        torch.equal(own[key], value) for key, value in pretrained.mlm_head.state_dict().items()
    )
    with pytest.raises(ValueError, match="mask_id -1 is not in"):
        CaptionScorer(build_backbone(CONFIG), -1)
