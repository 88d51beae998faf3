"""CodebookExplorer: pictures of codes show the codes that the tokenizer chose."""

import numpy as np
import pytest
import torch

from minibeit3.explore import CodebookExplorer, codes, core
from minibeit3.visual_tokenizer import VQKD, VQKDConfig

# Blocks: to find a palette for noise takes seconds.
BLOCKS = np.random.default_rng(0).integers(0, 255, (3, 3, 8, 8), dtype=np.uint8)
PICTURES = torch.from_numpy(BLOCKS.repeat(4, axis=2).repeat(4, axis=3))


def model() -> VQKD:
    config = VQKDConfig(
        image_size=32,
        patch=8,
        width=16,
        ffn_width=32,
        heads=2,
        depth=1,
        decoder_depth=1,
        codes=64,
        code_dim=4,
        teacher_dim=8,
    )
    fresh = VQKD(config).eval()
    generator = torch.Generator().manual_seed(0)
    fresh.codebook.start(
        torch.nn.functional.normalize(torch.randn(64, 4, generator=generator), dim=-1)
    )
    return fresh


def test_nearest_patches_are_the_most_alike_in_order() -> None:
    likeness = np.array([[0.1, 0.9, 0.2], [0.8, 0.9, -1.0]])
    assert codes.nearest_patches(likeness, 3) == [(0, 1), (1, 1), (1, 0)]


def test_exactly_the_patches_of_the_chosen_code_are_outlined() -> None:
    grid = np.zeros((4, 4), np.int64)
    grid[1, 2] = 5
    drawn = codes.code_grid(np.zeros((32, 32, 3), np.uint8), grid, 5)
    found = np.argwhere((drawn == core.OUTLINE).all(-1)) // 96
    assert (found == [1, 2]).all() and len(found)


def test_a_patch_is_cut_where_it_lies_with_white_beyond_the_border() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:16, 16:24] = (0, 200, 0)
    middle = codes.around(picture, 6, 4)[42, 42]
    corner = codes.around(picture, 0, 4)
    assert middle[1] > 150 and (corner[5, 5] > 240).all() and (corner[75, 75] < 60).all()


def test_the_explorer_shows_the_codes_of_the_tokenizer_and_redraws() -> None:
    explorer = CodebookExplorer(model(), PICTURES)
    assert torch.equal(explorer.tokens, model().tokens(PICTURES.float() / 255))
    assert explorer.code.value == explorer.tokens[0, 10]
    counts = torch.bincount(explorer.tokens.flatten(), minlength=64)
    for code in (int(counts.argmax()), int(counts.argmin())):
        explorer.code.value = code
        for index in (1, 3):
            explorer.picture.value = index
            covered = int((explorer.tokens[index - 1] == code).sum())
            assert f"Picture {index}:" in repr(explorer)
            assert f"code {code} covers {covered} of them" in repr(explorer)
    assert counts.min() == 0 and "dead here" in repr(explorer)
    assert f"{int((counts == 0).sum())} of 64 codes are dead" in repr(explorer)
    bundle = explorer._repr_mimebundle_()
    assert {"image/png", "text/html", "text/plain"} < set(bundle)
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_other_pictures_and_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float32.*stack"):
        CodebookExplorer(model(), PICTURES.float())
    with pytest.raises(ValueError, match=r"64.*0 to 63"):
        CodebookExplorer(model(), PICTURES, code=64)
