"""The study of what to hide: its random arms, and the score with tokens hidden in turn."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minibeit3 import PRESETS, build_backbone
from minibeit3.batches import generator_of
from minibeit3.data.scene_pairs import BindingPairs
from minibeit3.modes import CaptionScorer
from minibeit3.recipe import Setup
from minibeit3.recipes.binding import crossed
from minibeit3.text_tokenizer import TextTokenizer

CONFIG = replace(PRESETS["nano"], depth=2, width=32, ffn_width=32, heads=2, fusion_layers=1)
SETUP = Setup(config=CONFIG, tokenizer=TextTokenizer.lab())
SAMPLES = [BindingPairs("val", 6, 32)[i] for i in range(6)]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    return importlib.import_module("study_binding")


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_random_arms_hide_words_alone_and_at_least_one_of_each_caption(
    study: Any, share: float
) -> None:
    g = generator_of(0)
    batches = [study.at_random(SAMPLES, SETUP, share, g) for _ in range(200)]
    hidden = torch.stack([batch.hidden for batch in batches])
    ends = torch.tensor([SETUP.tokenizer.bos_id, SETUP.tokenizer.eos_id])
    inner = batches[0].real & ~torch.isin(batches[0].text, ends)
    assert torch.equal(hidden.any(dim=0), inner) and hidden.any(dim=2).all()
    assert share or (hidden.sum(dim=2) == 1).all()
    assert not share or abs(hidden[:, inner].float().mean().item() - share) < 0.02


@torch.inference_mode()
def test_in_turn_every_token_is_guessed_with_all_others_shown(study: Any) -> None:
    g = generator_of(0)
    model = CaptionScorer(build_backbone(CONFIG, g), SETUP.tokenizer.mask_id, g).eval()
    found, batch = study.turn_scores(model, SAMPLES[:2], SETUP), crossed(SAMPLES[:2], SETUP)
    for row, (words, real) in enumerate(zip(batch.text, batch.real, strict=True)):
        words, total = words[real], 0.0
        for place in range(1, len(words) - 1):
            hidden = torch.zeros(1, len(words), dtype=torch.bool)
            hidden[0, place] = True
            image = batch.image[row : row + 1]
            total += model(image, words[None], torch.ones_like(hidden), hidden).item()
        assert found.flatten()[row].item() == pytest.approx(total, abs=1e-3)
