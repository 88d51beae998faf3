"""Masks: exact counts, specials never hidden, the draws of the paper and their controls."""

import pytest
import torch

from minibeit3.masking import (
    blockwise_mask,
    mask_differences,
    mask_patches,
    mask_span,
    mask_text,
    random_mask,
    replace_all,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("grid", "count"), [(14, 78), (16, 102), (8, 26), (4, 6), ((6, 9), 20)])
def test_blocks_hide_exactly_the_asked_number(grid: int | tuple, count: int) -> None:
    g = generator()
    for _ in range(50):
        mask = blockwise_mask(grid, count, g)
        assert mask.shape == ((grid, grid) if isinstance(grid, int) else grid)
        assert mask.dtype == torch.bool and int(mask.sum()) == count


def neighbours(mask: torch.Tensor) -> float:
    """Share of hidden patches whose right neighbour is hidden too."""
    return (mask[:, :-1] & mask[:, 1:]).sum().item() / mask.sum().item()


def test_blocks_hang_together_and_random_masks_do_not() -> None:
    g = generator()
    blocks = sum(neighbours(blockwise_mask(14, 78, g)) for _ in range(60)) / 60
    chance = sum(neighbours(random_mask(14, 78, g)) for _ in range(60)) / 60
    assert blocks > 0.7 > 0.45 > chance


def test_every_patch_is_hidden_about_equally_often_by_random_masks() -> None:
    share = mask_patches(2000, 8, 0.4, generator(), random_mask).float().mean(dim=0)
    assert share.min() > 0.35 and share.max() < 0.46


def test_the_same_seed_hides_the_same_patches_and_another_seed_others() -> None:
    first, again, other = (mask_patches(4, 8, 0.4, generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first.sum(dim=1) == 26).all() and first.shape == (4, 64)


@pytest.mark.parametrize(("count", "words"), [(65, "65 of 8 x 8"), (-1, "-1 of 8 x 8")])
def test_impossible_counts_are_refused(count: int, words: str) -> None:
    for draw in (blockwise_mask, random_mask):
        with pytest.raises(ValueError, match=words):
            draw(8, count, generator())


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(4, 90, (40, 14), generator=generator(5))
    length = torch.randint(3, 15, (40, 1), generator=generator(6))
    place = torch.arange(14)[None]
    text = torch.where(place == length - 1, 2, text)
    text[:, 0] = 0
    return torch.where(place < length, text, 1), place < length


@pytest.mark.parametrize("ratio", [0.15, 0.5, 1.0])
def test_the_asked_share_of_words_is_hidden_and_specials_never_are(ratio: float) -> None:
    text, real = texts()
    ids, hidden = mask_text(text, real, ratio, 96, 97, generator())
    assert not (hidden & torch.isin(text, torch.tensor([0, 1, 2]))).any()
    words = real.sum(dim=1) - 2
    expected = (ratio * words + 0.5).floor().clamp(min=1)
    assert torch.equal(hidden.sum(dim=1), expected.long())
    assert torch.equal(ids[~hidden], text[~hidden])


def test_replacement_is_80_10_10_or_pure() -> None:
    text = torch.randint(4, 90, (300, 30), generator=generator(1))
    ids, hidden = mask_text(text, None, 0.5, 96, 97, generator())
    masked, same = (ids[hidden] == 96).float().mean(), (ids[hidden] == text[hidden]).float().mean()
    assert masked == pytest.approx(0.8, abs=0.03) and same == pytest.approx(0.1, abs=0.03)
    pure, hidden = mask_text(text, None, 0.5, 96, 97, generator(), replace_all)
    assert (pure[hidden] == 96).all()


def test_a_text_without_words_hides_none() -> None:
    text = torch.tensor([[0, 2, 1, 1]])
    _, hidden = mask_text(text, text != 1, 0.5, 96, 97, generator())
    assert not hidden.any()


def test_spans_hide_neighbouring_words() -> None:
    text, _ = texts()
    ids, hidden = mask_span(text, 0.5, 96, generator())
    for row in hidden:
        at = row.nonzero().flatten()
        assert len(at) and torch.equal(at, torch.arange(int(at[0]), int(at[0]) + len(at)))
    assert (ids[hidden] == 96).all() and not (hidden & (text <= 2)).any()


def test_differences_hide_what_another_caption_has_not_there_and_nothing_special() -> None:
    text = torch.tensor([[0, 7, 8, 9, 2, 1], [0, 7, 8, 9, 5, 2], [0, 7, 2, 5, 5, 5]])
    other = torch.tensor([[0, 8, 7, 9, 4, 2], [0, 7, 6, 9, 5, 2], [0, 7, 9, 9, 9, 2]])
    real = torch.arange(6) < torch.tensor([[5], [6], [3]])  # the third's 5s are not of the text
    ids, hidden = mask_differences(text, other, real, mask_id=3)
    assert hidden.nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert (ids[hidden] == 3).all() and torch.equal(ids[~hidden], text[~hidden])
