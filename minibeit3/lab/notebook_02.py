"""Exercises of notebook 02."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from minibeit3.lab.exercises import Exercise, register
from minibeit3.masking import SPECIAL_IDS, mask_text, random_mask, replace_all


def hide_exactly(grid: int, count: int, generator: Generator) -> Tensor:
    """Hide exactly `count` patches at random: bool (grid, grid), True = hidden."""
    return random_mask(grid, count, generator)


def _seeded(draw: Callable[[Generator], Tensor], times: int) -> Tensor:
    """`times` masks from one generator, which must decide them alone."""
    g = torch.Generator().manual_seed(times)
    masks = [draw(g) for _ in range(times)]
    again = draw(torch.Generator().manual_seed(times))
    assert isinstance(again, Tensor), f"Return a tensor, not {type(again).__name__}."
    assert again.dtype == torch.bool, f"Return a bool mask, True = hidden, not {again.dtype}."
    assert torch.equal(masks[0], again), (
        "The same seed gave another mask: pass `generator` to every random call."
    )
    assert any(not torch.equal(masks[0], mask) for mask in masks), (
        "Every call gives the same mask: draw from the generator, do not seed it again."
    )
    return torch.stack(masks)


def _check_exactly(hide: Callable[[int, int, Generator], Tensor]) -> None:
    for grid, count in ((4, 6), (7, 20), (8, 26)):
        masks = _seeded(lambda g, n=grid, c=count: hide(n, c, g), 200)
        shape = tuple(masks.shape[1:])
        assert shape == (grid, grid), f"Expected a mask ({grid}, {grid}), got {shape}."
        found = masks.sum(dim=(1, 2))
        turned = int(found.min()) == int(found.max()) == grid * grid - count
        assert not turned, "True must mean hidden: you have marked the visible patches."
        assert (found == count).all(), (
            f"Asked for {count} hidden patches, got {int(found.min())} to {int(found.max())}. A "
            "coin per patch is right only on average: rank random numbers instead."
        )
        often = masks.float().mean(dim=0) * grid * grid / count
        assert often.min() > 0.4 and often.max() < 1.6, (
            "Some patches are hidden much more often than others: all must have the same chance."
        )


def one_block(grid: int, area: float, aspect: float, generator: Generator) -> Tensor:
    """One rectangle at a random place: bool (grid, grid); aspect = height / width."""
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    top = int(torch.randint(grid - height + 1, (), generator=generator))
    left = int(torch.randint(grid - width + 1, (), generator=generator))
    hidden = torch.zeros(grid, grid, dtype=torch.bool)
    hidden[top : top + height, left : left + width] = True
    return hidden


def _check_block(draw: Callable[[int, float, float, Generator], Tensor]) -> None:
    for grid, area, aspect in ((8, 8.0, 2.0), (9, 12.0, 0.6), (6, 10.0, 0.4), (7, 9.0, 1.0)):
        masks = _seeded(lambda g, n=grid, a=area, r=aspect: draw(n, a, r, g), 300)
        wanted = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        rows, columns = masks.any(dim=2), masks.any(dim=1)
        size = int(rows[0].sum()), int(columns[0].sum())
        assert wanted[0] == wanted[1] or size != wanted[::-1], (
            f"The block is {size[0]} high and {size[1]} wide, it should be the other way round: "
            "aspect is height / width, so the height is sqrt(area * aspect)."
        )
        assert size == wanted, (
            f"Area {area:.0f} and aspect {aspect} make a block of {wanted[0]} by {wanted[1]}, "
            f"yours is {size[0]} by {size[1]}. Round the two square roots; do not cut them off."
        )
        assert all(int(m.sum()) == wanted[0] * wanted[1] for m in masks), (
            "That is not one full rectangle: fill all rows and columns of the block."
        )
        assert rows.any(dim=0).all() and columns.any(dim=0).all(), (
            "Some rows or columns are never hidden. A block of height h can start in "
            "grid - h + 1 places; the end of torch.randint is left out."
        )


def hide_words(text: Tensor, count: int, mask_id: int, generator: Generator) -> Tensor:
    """Ids int64 (T,) with `count` words at random replaced by `mask_id`; specials stay."""
    words = int(torch.isin(text, torch.tensor(SPECIAL_IDS), invert=True).sum())
    ratio = min(count, words) / words
    return mask_text(text[None], None, ratio, mask_id, 10**6, generator, replace_all)[0][0]


def _check_words(hide: Callable[[Tensor, int, int, Generator], Tensor]) -> None:
    for words, padding, count in ((5, 3, 2), (9, 0, 4), (4, 6, 4)):
        g = torch.Generator().manual_seed(words)
        said = torch.randint(3, 4000, (words,), generator=g)
        text = torch.tensor([0, *said.tolist(), 2, *[1] * padding])
        given, mask_id, spare = text.clone(), 4999, torch.Generator().manual_seed(0)
        special = torch.isin(text, torch.tensor(SPECIAL_IDS))
        ever = torch.zeros_like(special)
        for _ in range(100):
            found = hide(given, count, mask_id, spare)
            assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
            assert found.shape == text.shape, f"Expected {len(text)} ids, got {len(found)}."
            assert torch.equal(given, text), (
                "You changed the text that was passed in, and with it the targets: clone it first."
            )
            gone = found == mask_id
            assert not (gone & special).any(), (
                f"You hid id {int(text[gone & special][0])}. The specials 0, 1, 2 (<s>, <pad>, "
                "</s>) carry no meaning to guess: choose among the other places."
            )
            number = int(gone.sum())
            assert number == count, f"Asked for {count} hidden words of {words}, got {number}."
            assert torch.equal(found[~gone], text[~gone]), "Visible words must stay as they are."
            ever |= gone
        assert torch.equal(ever, ~special), (
            "Some words are never hidden: every word needs a chance, also the first and the last."
        )


register(
    Exercise(
        name="hide_exactly",
        difficulty=1,
        minutes=5,
        check=_check_exactly,
        hints=(
            "Give every patch a place in a random order.",
            "torch.randperm(grid * grid, generator=generator) is such an order.",
            "Hide those whose place is below count, then view as (grid, grid).",
        ),
        reference=hide_exactly,
    )
)
register(
    Exercise(
        name="one_block",
        difficulty=2,
        minutes=10,
        check=_check_block,
        hints=(
            "Height times width is the area, height over width is the aspect: solve for both.",
            "height = round(sqrt(area * aspect)), width = round(sqrt(area / aspect)).",
            "The top row is torch.randint(grid - height + 1, (), generator=generator).",
        ),
        reference=one_block,
    )
)
register(
    Exercise(
        name="hide_words",
        difficulty=2,
        minutes=10,
        check=_check_words,
        hints=(
            "First find the places that may be hidden at all: ids above 2.",
            "Shuffle those places with torch.randperm and keep the first `count`.",
            "Clone the text, then write mask_id at the kept places.",
        ),
        reference=hide_words,
    )
)
