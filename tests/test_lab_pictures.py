"""Figures of the paper redrawn: shapes and routes are the model's own, the alt text says them."""

import numpy as np
import pytest
import torch

from minibeit3 import build_backbone, preset
from minibeit3.config import Variant
from minibeit3.explore.routes import USES
from minibeit3.lab.pictures import architecture, five_modes, visible_to, what_is_hidden
from minibeit3.objective import MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_architecture_shows_the_shapes_of_the_pass(variant: Variant) -> None:
    model = MaskedDataModel(build_backbone(preset("nano", variant))).eval()
    drawn = architecture(model, torch.zeros(1, 3, 32, 32), torch.full((1, 7), 5))
    for shape in ((1, 3, 32, 32), (1, 17, 128), (1, 7, 128), (1, 4, 24, 24), (1, 7, 4000)):
        assert str(shape) in drawn.alt
    assert ("layers 3 to 4" in drawn.alt) == ("VL: 128 → 512 → 128" in drawn.alt)
    assert ("VL" in drawn.alt) == (variant == "paper")
    assert drawn.picture.dtype == np.uint8 and drawn.picture.shape[1] < 900


def test_five_modes_tell_the_experts_of_every_use() -> None:
    paper, released = (five_modes(preset("nano", variant)) for variant in ("paper", "released"))
    assert all(name in paper.alt for name in USES)
    assert "fusion encoder: layers 1 V/L, 2 V/L, 3 VL, 4 VL" in paper.alt
    assert "VL" not in released.alt.replace("V/L", "")
    with pytest.raises(ValueError, match="40 layers"):
        five_modes(preset("giant"))


def test_visibility_of_the_uses() -> None:
    sees = {name: visible_to(use, 3, 2) for name, use in USES.items()}
    assert sees["vision encoder"].shape == (3, 3) and sees["language encoder"].shape == (2, 2)
    assert sees["fusion encoder"].all() and sees["fusion encoder"].shape == (5, 5)
    assert not sees["dual encoder"][:3, 3:].any() and not sees["dual encoder"][3:, :3].any()
    caption = sees["sequence-to-sequence"]
    assert not caption[:3, 3:].any() and caption[4].all() and not caption[3, 4]


def test_what_is_hidden_hides_the_papers_shares() -> None:
    picture, g = np.zeros((64, 64, 3), np.uint8), torch.Generator().manual_seed(1)
    text = " ".join(["red"] * 20)
    drawn = what_is_hidden(picture, text, text, TextTokenizer.lab(), 8, g)
    assert drawn.alt.count("26 of 64 patches hidden") == 2
    assert "3 of 20 words hidden" in drawn.alt and "10 of 20 words hidden" in drawn.alt
    assert "Photograph" not in drawn.alt
