"""Explorers: pure pictures say what they show, shells redraw over the whole range of controls."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from minibeit3 import build_backbone, preset, routing_table
from minibeit3.explore import AttentionExplorer, MaskExplorer, core
from minibeit3.explore.hiding import distance_picture

# Blocks: to find a palette for noise takes seconds.
BLOCKS = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
PICTURE = BLOCKS.repeat(8, axis=0).repeat(8, axis=1)


def test_hidden_patches_are_covered_and_visible_ones_are_not() -> None:
    hidden = np.zeros((8, 8), dtype=bool)
    hidden[2, 3] = True
    drawn = core.masked_picture(PICTURE, hidden)
    inner = drawn.picture[2 * 32 + 4 : 3 * 32 - 4, 3 * 32 + 4 : 4 * 32 - 4]
    assert (inner == core.GREY).all()
    assert not (drawn.picture[4:28, 4:28] == core.GREY).all()
    assert "1 of 64" in drawn.alt


def test_png_bytes_hold_exactly_the_picture_and_repeat() -> None:
    data = core.to_png(PICTURE)
    assert data == core.to_png(PICTURE)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), PICTURE)


def test_a_grid_that_does_not_divide_the_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"100.*3 x 3"):
        core.enlarge(np.zeros((3, 3)), 100)


@pytest.mark.parametrize("grid", [4, 14, 24])
def test_pictures_of_every_grid_have_a_whole_number_of_pixels_a_patch(grid: int) -> None:
    hidden = np.zeros((grid, grid), bool)
    hidden[1, 2] = True
    pattern = np.full((1, grid**2 + 2, grid**2 + 2), 0.01)
    heat = core.heat_picture(PICTURE, pattern[0, 0, 1:-1].reshape(grid, grid), 0.01)
    drawn = [heat, core.masked_picture(PICTURE, hidden).picture]
    drawn += [distance_picture(PICTURE, hidden).picture]
    for picture in drawn:
        assert picture.shape[0] == picture.shape[1] and picture.shape[0] % grid == 0
        assert abs(picture.shape[0] - 256) <= grid // 2
    step = len(drawn[1]) // grid
    assert (drawn[1][step + 1 : 2 * step - 1, 2 * step + 1 : 3 * step - 1] == core.GREY).all()
    assert "patch row 1" in core.attention_picture(PICTURE, pattern, ["a"], 1, None, grid).alt


def test_attention_rows_split_a_row_into_cls_patches_and_words() -> None:
    pattern = np.random.default_rng(1).random((2, 21, 21))
    cls, patches, words = core.attention_rows(pattern, 1, 7, grid=4)
    assert cls == pattern[1, 7, 0] and patches[1, 2] == pattern[1, 7, 1 + 6]
    assert np.array_equal(words, pattern[1, 7, 17:])
    mean = core.attention_rows(pattern, None, 7, grid=4)[2]
    assert np.allclose(mean, pattern[:, 7, 17:].mean(axis=0))


def test_the_alt_sentence_names_the_strongest_patch_and_word() -> None:
    pattern = np.full((1, 21, 21), 0.01)
    pattern[0, 18, 1 + 2 * 4 + 3] = 0.5
    pattern[0, 18, 19] = 0.3
    words = ["<s>", "cat", "hat", "</s>"]
    alt = core.attention_picture(PICTURE, pattern, words, 18, None, 4).alt
    assert "word 'cat' attends" in alt and "row 3 column 4" in alt and "word 'hat'" in alt


def test_the_routing_picture_is_coloured_by_the_table_and_says_it() -> None:
    table = routing_table(preset("tiny"), 65, 20)
    drawn = core.routing_picture({"pair": table})
    pixels = drawn.picture.reshape(-1, 3)
    shares = {n: (pixels == c).all(axis=1).sum() for n, c in core.EXPERTS.items()}
    assert shares["V"] > shares["VL"] > shares["L"] > 0  # 4 x 65, 2 x 85 and 4 x 20 boxes
    assert "4 V/L, 5 VL" in drawn.alt


def attention() -> AttentionExplorer:
    backbone = build_backbone(preset("tiny"), torch.Generator().manual_seed(0))
    words = ["<s>", "<b>", "cat", "</s>"]
    return AttentionExplorer(
        backbone, PICTURE, torch.zeros(1, 3, 64, 64), torch.tensor([[0, 5, 6, 2]]), words
    )


def test_every_control_redraws_over_its_whole_range() -> None:
    masks = MaskExplorer(PICTURE)
    pictures = set()
    for ratio in (0, 0.4, 0.9):
        for kind in masks.kind.options:
            for seed in (0, 20):
                masks.ratio.value, masks.kind.value, masks.seed.value = ratio, kind, seed
                pictures.add(bytes(masks.shell.image.value))
                assert int(masks.hidden().sum()) == round(ratio * 64)
                assert f"{round(ratio * 64)} of 64" in masks.shell.status.value
    assert len(pictures) == 9  # nothing hidden looks the same four times
    looks = attention()
    for layer in (1, 6):
        for head in (-1, 0, 3):
            for token in (0, 1, 64, 65, 68):
                looks.layer.value, looks.head.value, looks.token.value = layer, head, token
                assert core.token_name(token, 8, ["<s>", "<b>", "cat", "</s>"]) in repr(looks)


def test_saved_notebooks_keep_a_picture_with_escaped_alt_text_and_a_stable_sentence() -> None:
    looks = attention()
    looks.token.value = 66
    bundle = looks._repr_mimebundle_()
    assert {"image/png", "text/html", "text/plain"} < set(bundle)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "<b>" not in bundle["text/html"] and "&lt;b&gt;" in bundle["text/html"]
    assert bundle["text/plain"] == repr(looks) and "0x" not in repr(looks)
