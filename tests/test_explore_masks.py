"""MaskExplorer: distances are true, hidden words leave no trace, controls reach the mask."""

import math

import numpy as np
import pytest
import torch

from minibeit3.explore import MaskExplorer
from minibeit3.explore.core import GREY
from minibeit3.explore.hiding import caption_picture, distance_picture, nearest_visible
from minibeit3.masking import blockwise_mask

# Blocks: to find a palette for noise takes seconds.
BLOCKS = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
PICTURE = BLOCKS.repeat(8, axis=0).repeat(8, axis=1)


def test_the_nearest_visible_patch_is_visible_and_none_is_nearer() -> None:
    for seed in range(20):
        hidden = np.random.default_rng(seed).random((5, 7)) < 0.7
        distance, source = nearest_visible(hidden)
        shown = np.argwhere(~hidden)
        for row, column in np.ndindex(hidden.shape):
            best = min(math.dist((row, column), place) for place in shown)
            found = divmod(int(source[row, column]), 7)
            assert not hidden[found]
            assert distance[row, column] == pytest.approx(best)
            assert math.dist((row, column), found) == pytest.approx(best)


def test_visible_patches_are_their_own_source_and_with_none_all_is_far() -> None:
    distance, source = nearest_visible(np.zeros((3, 4), dtype=bool))
    assert not distance.any() and source.flatten().tolist() == list(range(12))
    distance, source = nearest_visible(np.ones((3, 4), dtype=bool))
    assert np.isinf(distance).all() and (source == -1).all()


def test_the_distance_picture_covers_hidden_patches_only_and_says_the_mean() -> None:
    hidden = np.zeros((8, 8), dtype=bool)
    hidden[2:5, 2:5] = True
    drawn, bare = (distance_picture(PICTURE, h) for h in (hidden, hidden & False))
    changed = (drawn.picture != bare.picture).any(axis=-1).reshape(8, 32, 8, 32)
    assert not changed.any(axis=(1, 3))[~hidden].any()
    assert changed.any(axis=(1, 3))[hidden].all()
    assert "9 of 64 patches hidden, on average 1.11 patches" in drawn.alt
    assert "64 of 64" in distance_picture(PICTURE, ~(hidden & False)).alt


def test_a_hidden_word_leaves_a_box_that_does_not_tell_its_length() -> None:
    short = caption_picture(["a", "cat"], [False, True])
    long = caption_picture(["a", "hippopotamus"], [False, True])
    assert np.array_equal(short.picture, long.picture)
    assert (short.picture == GREY).all(axis=-1).any()
    assert long.alt == "1 of 2 words hidden: a [mask]."
    assert not (caption_picture(["a"], [False]).picture == GREY).all(axis=-1).all()


def test_word_buttons_hide_and_bring_back_words() -> None:
    masks = MaskExplorer(PICTURE, words=["a", "<b>cat", "sits"])
    before = bytes(masks.shell.image.value)
    masks.words[1].value = True
    assert masks.shell.status.value.endswith("1 of 3 words hidden: a [mask] sits.")
    assert bytes(masks.shell.image.value) != before
    masks.words[1].value = False
    assert bytes(masks.shell.image.value) == before
    assert "<b>" not in masks._repr_mimebundle_()["text/html"]


def test_block_and_aspect_reach_the_mask_and_its_start_is_the_package_default() -> None:
    masks = MaskExplorer(PICTURE)
    usual = blockwise_mask(8, 26, torch.Generator().manual_seed(0))
    assert torch.equal(masks.hidden(), usual)
    for block, aspect in ((1, 0.1), (32, 1.0)):
        masks.block.value, masks.aspect.value = block, aspect
        assert int(masks.hidden().sum()) == 26 and not torch.equal(masks.hidden(), usual)
        wanted = blockwise_mask(
            8, 26, torch.Generator().manual_seed(0), block, (aspect, 1 / aspect)
        )
        assert torch.equal(masks.hidden(), wanted)


def test_the_distance_view_is_drawn_at_both_ends_of_the_ratio() -> None:
    masks = MaskExplorer(PICTURE, ratio=0)
    masks.show.value = "distance"
    assert masks.shell.status.value == "Picture with 0 of 64 patches hidden."
    masks.ratio.value = 0.9
    assert "nearest visible" in masks.shell.status.value
