"""States and flows: what may be shown, and what attention adds up to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minibeit3 import build_backbone, preset
from minibeit3.capture import capture
from minibeit3.explore import flow
from minibeit3.explore.inside import Inside, best_guess, own_direction
from minibeit3.explore.state import (
    AttentionState,
    MaskState,
    attention_limits,
    mask_limits,
    moved,
)
from minibeit3.objective import MaskedDataModel

LOOK = AttentionState(layer=6, query=3)
LIMITS = attention_limits(depth=6, heads=4, tokens=69, regions=1)
MASK = MaskState(ratio=0.4, block=5, brushed="1" * 64, words="000")
MASKS = mask_limits(grid=8, words=3, most_block=32)
IMAGE, TEXT = torch.rand(1, 3, 64, 64), torch.tensor([[0, 5, 6, 2]])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("layer", (1, 6), (0, 7, 1.5, "1", None, True)),
        ("head", (-1, 3), (-2, 4)),
        ("query", (0, 68), (-1, 69)),
        ("method", ("rollout",), ("", "Rollout", 1)),
        ("keep", (10, 100), (9, 101)),
        ("region", (-1, 0), (1,)),
    ],
)
def test_a_look_takes_what_the_model_has_and_names_what_it_refuses(
    name: str, good: tuple, bad: tuple
) -> None:
    for value in good:
        assert getattr(moved(LOOK, {name: value}, LIMITS), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"{name} is .*choose"):
            moved(LOOK, {name: value}, LIMITS)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour' is no setting"):
        moved(LOOK, {"colour": 1}, LIMITS)


@pytest.mark.parametrize("bits", ["2" * 64, "1" * 63, 5, None])
def test_brushed_bits_that_are_no_mask_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="64 zeros and ones"):
        moved(MASK, {"brushed": bits}, MASKS)


@given(st.floats(0, 0.9), st.integers(0, 20), st.text("01", min_size=3, max_size=3))
def test_the_brush_goes_exactly_when_the_drawn_mask_changes(
    ratio: float, seed: int, words: str
) -> None:
    after = moved(MASK, {"ratio": ratio, "seed": seed, "words": words, "show": "distance"}, MASKS)
    assert (after.brushed == "") == (ratio != 0.4 or seed != 0)
    assert moved(MASK, {"seed": seed, "brushed": "0" * 64}, MASKS).brushed == "0" * 64


def patterns(layers: int, heads: int, tokens: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).random((layers, heads, tokens, tokens))
    return made / made.sum(axis=-1, keepdims=True)


def test_rollout_rows_are_shares_and_a_layer_that_looks_at_itself_changes_nothing() -> None:
    found = patterns(3, 2, 7)
    assert np.allclose(flow.rollout(found).sum(axis=1), 1)
    itself = np.broadcast_to(np.eye(7), (1, 2, 7, 7))
    assert np.allclose(flow.rollout(np.concatenate([found, itself])), flow.rollout(found))
    one = flow.rollout(found[:1])
    assert np.allclose(one, (found[0].mean(axis=0) + np.eye(7)) / 2)


def test_relevance_of_two_layers_is_the_sum_over_paths_of_positive_parts() -> None:
    weights, gradients = patterns(2, 3, 5), np.random.default_rng(1).normal(size=(2, 3, 5, 5))
    first, second = np.clip(weights * gradients, 0, None).mean(axis=1)
    assert np.allclose(flow.relevance(weights, gradients), first + second + second @ first)
    assert not flow.relevance(weights, -np.abs(gradients)).any()


def test_shares_between_modalities_are_means_of_what_crosses() -> None:
    found = patterns(2, 3, 9)
    across = flow.shares(found, image_tokens=5)
    assert np.isclose(across[1, 2, 0], found[1, 2, :5, 5:].sum(axis=1).mean())
    assert np.isclose(across[1, 2, 1], found[1, 2, 5:, :5].sum(axis=1).mean())
    assert not flow.shares(found, image_tokens=9)[..., :2].any()


@given(st.integers(0, 99))
def test_packed_weights_come_back_within_half_a_step_of_their_rows_maximum(seed: int) -> None:
    rows = np.random.default_rng(seed).random((4, 11)).astype(np.float32) ** 8
    rows[1] = 0
    back = flow.unpacked(flow.packed(rows), 11)
    assert (np.abs(back - rows) <= rows.max(axis=1, keepdims=True) / 509).all()


def test_a_region_covers_patches_by_parts_and_even_weights_score_its_area() -> None:
    inside = np.zeros((16, 16), dtype=bool)
    inside[:8, :4] = True
    region = flow.region_of("corner", inside, grid=2)
    assert region.cover.tolist() == [0.5, 0, 0, 0]
    even = flow.region_score(np.full(4, 0.1), region)
    assert even.mass == pytest.approx(even.area) and even.area == 0.125
    best = flow.region_score(np.array([1.0, 0, 0, 0]), region)
    assert best.mass == 0.5 and best.hit
    assert not flow.region_score(np.array([0, 1.0, 0, 0]), region).hit


def test_patterns_are_the_models_own_and_relevance_is_a_share_also_for_frozen_weights() -> None:
    backbone = build_backbone(preset("tiny"), torch.Generator().manual_seed(0))
    backbone.requires_grad_(False)
    inside = Inside(backbone, IMAGE, TEXT)
    with torch.no_grad(), capture(backbone, "blocks.2.attn:pattern") as seen:
        backbone(IMAGE, TEXT)
    (pattern,) = seen.values()
    assert np.allclose(inside.patterns[2], pattern[0], atol=1e-6)  # type: ignore[index]
    assert np.allclose(inside.rollout(2), flow.rollout(inside.patterns[:2]))
    row = inside.relevance(66)
    assert row.shape == (69,) and (row >= 0).all() and row.sum() == pytest.approx(1, abs=1e-4)
    nothing = Inside(backbone, IMAGE, TEXT, explained=lambda x, token: own_direction(x, token) * 0)
    assert not nothing.relevance(66).any()


def test_a_pretrained_model_explains_its_best_guess_by_the_head_of_the_token() -> None:
    model = MaskedDataModel(build_backbone(preset("tiny"), torch.Generator().manual_seed(0))).eval()
    x = model.backbone(IMAGE, TEXT)
    assert x.image is not None and x.text is not None
    explained = best_guess(model)
    assert torch.equal(explained(x, 66), model.mlm_head(x.text[0, 1]).max())
    assert torch.equal(explained(x, 10), model.mim_head(x.image[0, 10]).max())
