"""Masked data modelling: the loss looks at hidden places only, each stream counts, it learns."""

from typing import Any

import torch
import torch.nn.functional as F

from minibeit3 import build_backbone
from minibeit3.masking import mask_patches, mask_text
from minibeit3.objective import (
    MaskedBatch,
    MaskedDataModel,
    masked_data_loss,
    masked_pixel_loss,
)
from tests.test_backbones import SMALL


def model() -> Any:
    torch.manual_seed(0)
    return MaskedDataModel(build_backbone(SMALL, torch.Generator().manual_seed(0))).eval()


def batch(pairs: int = 2) -> Any:  # a MaskedBatch that has everything
    g = torch.Generator().manual_seed(1)
    image, text = torch.randn(4, 3, 32, 32, generator=g), torch.randint(4, 90, (5, 9), generator=g)
    real = torch.ones(5, 9, dtype=torch.bool)
    ids, hidden = mask_text(text, real, 0.5, 96, 97, g)
    codes = torch.randint(0, 31, (4, 16), generator=g)
    return MaskedBatch(image, mask_patches(4, 4, 0.4, g), codes, ids, real, hidden, text, pairs)


def test_guesses_are_made_at_hidden_places_only_and_equal_the_full_computation() -> None:
    m, b = model(), batch()
    patches, words = m(b)
    features = m.backbone(b.image, b.text, b.text_real, b.hidden_patches, pairs=2)
    full = m.mim_head(features.image[:, 1:]), m.mlm_head(features.text)
    torch.testing.assert_close(patches.logits, full[0][b.hidden_patches])
    torch.testing.assert_close(words.logits, full[1][b.hidden_words])
    assert torch.equal(patches.targets, b.codes[b.hidden_patches])
    assert torch.equal(words.targets, b.words[b.hidden_words])
    loss, _ = masked_data_loss(patches, words)
    expected = F.cross_entropy(full[0][b.hidden_patches], b.codes[b.hidden_patches])
    expected += F.cross_entropy(full[1][b.hidden_words], b.words[b.hidden_words])
    torch.testing.assert_close(loss, expected)


def test_visible_targets_do_not_matter() -> None:
    m, b = model(), batch()
    other = b._replace(
        codes=torch.where(b.hidden_patches, b.codes, (b.codes + 1) % 31),
        words=torch.where(b.hidden_words, b.words, (b.words + 1) % 97),
    )
    assert masked_data_loss(*m(b))[0] == masked_data_loss(*m(other))[0]


def test_streams_are_told_apart() -> None:
    b = batch()
    patches, words = model()(b)
    assert int(patches.paired.sum()) == int(b.hidden_patches[2:].sum())
    assert int(words.paired.sum()) == int(b.hidden_words[:2].sum())
    _, metrics = masked_data_loss(patches, words)
    wanted = {"image", "text", "pair_image", "pair_text"}
    assert set(metrics) == {f"{w}_{k}" for w in wanted for k in ("loss", "accuracy")}


def test_one_modality_alone_works_and_the_image_weight_scales_its_term() -> None:
    m, b = model(), batch(pairs=0)
    image = b._replace(text=None, text_real=None, hidden_words=None, words=None)
    text = b._replace(image=None, hidden_patches=None, codes=None)
    one, two = masked_data_loss(*m(image))[0], masked_data_loss(*m(text))[0]
    torch.testing.assert_close(masked_data_loss(*m(b), image_weight=0.5)[0], 0.5 * one + two)


def test_pixels_in_place_of_codes_are_a_squared_error_at_hidden_places_beside_the_same_words() -> (
    None
):
    m, b = model(), batch()
    b = b._replace(codes=torch.randn(4, 16, 31, generator=torch.Generator().manual_seed(3)))
    patches, words = m(b)
    loss, metrics = masked_pixel_loss(patches, words, 0.5)
    error = F.mse_loss(patches.logits, b.codes[b.hidden_patches])
    torch.testing.assert_close(loss, 0.5 * error + masked_data_loss(None, words)[0])
    parts = metrics["image_loss"], metrics["pair_image_loss"]  # equally many are hidden in each
    torch.testing.assert_close(torch.stack(parts).mean(), error)
    assert metrics["pair_text_accuracy"] == masked_data_loss(None, words)[1]["pair_text_accuracy"]


def test_every_expert_and_both_heads_learn_from_one_mixed_batch() -> None:
    m = model().train()
    masked_data_loss(*m(batch()))[0].backward()
    still = [n for n, p in m.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    m, b = model().train(), batch()
    optimiser = torch.optim.AdamW(m.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = masked_data_loss(*m(b, torch.Generator().manual_seed(0)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
