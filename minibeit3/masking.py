"""What is hidden from the input: patches in blocks, words at random (paper, sections 2.2, 2.3).

Everywhere: True = hidden. All draws come from an explicit CPU generator, so that every device and
every resumed run hides the same.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

TEXT_RATIO = 0.15  # of the words of a text alone
PAIR_TEXT_RATIO = 0.5  # of the words of a pair
IMAGE_RATIO = 0.4  # of the patches of any image
SPECIAL_IDS = (0, 1, 2)  # <s>, <pad>, </s> are never hidden


def blockwise_mask(
    grid: int | tuple[int, int],
    count: int,
    generator: torch.Generator | None = None,
    min_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Hide exactly `count` patches in rectangles: bool (rows, columns).

    grid: rows and columns, or one number for both. min_block: smallest rectangle asked for, in
    patches; None scales BEiT's 16 of 14 x 14 to the grid. aspect: range of height / width, drawn
    evenly in its logarithm. Rectangles are drawn until the rest is smaller than what fits; then
    single patches at random make the count exact (BEiT v2, masking_generator.py).
    Raises ValueError when `count` or `min_block` does not fit the grid.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if not 0 <= count <= rows * columns:
        raise ValueError(f"cannot hide {count} of {rows} x {columns} patches")
    min_block = max(1, round(16 * rows * columns / 196)) if min_block is None else min_block
    if not 1 <= min_block <= rows * columns:
        raise ValueError(f"min_block {min_block} is not in 1..{rows * columns}")
    # One draw from the generator seeds Python's own, which is 20 times faster for single numbers.
    seed = torch.randint(2**62, (), generator=generator).item()
    draw = random.Random(seed)
    hidden = np.zeros((rows, columns), dtype=bool)
    left, tries = count, 0
    while left > 0 and tries < 10:  # ten rectangles in a row that add nothing: give up
        tries += 1
        area = draw.uniform(min_block, left)
        ratio = math.exp(draw.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, start = draw.randint(0, rows - height), draw.randint(0, columns - width)
        block = hidden[top : top + height, start : start + width]
        added = block.size - int(block.sum())
        if 0 < added <= left:
            block[:] = True
            left, tries = left - added, 0
    visible = np.flatnonzero(~hidden)
    hidden.flat[draw.sample(visible.tolist(), left)] = True
    return torch.from_numpy(hidden)


def random_mask(
    grid: int | tuple[int, int], count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Hide `count` patches at random: bool (rows, columns). The control of block-wise masking."""
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if not 0 <= count <= rows * columns:
        raise ValueError(f"cannot hide {count} of {rows} x {columns} patches")
    order = torch.randperm(rows * columns, generator=generator)
    return (order < count).view(rows, columns)


def mask_patches(
    images: int,
    grid: int,
    ratio: float = IMAGE_RATIO,
    generator: torch.Generator | None = None,
    draw: Callable[[int, int, torch.Generator | None], Tensor] = blockwise_mask,
) -> Tensor:
    """A batch of patch masks, bool (images, N), each with exactly round(ratio * N) hidden.

    draw: blockwise_mask, random_mask or one of your own.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio} is not in 0..1")
    count = round(ratio * grid * grid)
    masks = [draw(grid, count, generator).flatten() for _ in range(images)]
    return torch.stack(masks) if masks else torch.zeros(0, grid * grid, dtype=torch.bool)


def replace_all(
    ids: Tensor, mask_id: int, vocab_size: int, generator: torch.Generator | None = None
) -> Tensor:
    """Every hidden id (n,) becomes <mask>."""
    return torch.full_like(ids, mask_id)


def replace_bert(
    ids: Tensor, mask_id: int, vocab_size: int, generator: torch.Generator | None = None
) -> Tensor:
    """80% of the hidden ids (n,) become <mask>, 10% a random word, 10% stay (released code)."""
    chance = torch.rand(len(ids), generator=generator)
    words = torch.randint(max(SPECIAL_IDS) + 1, vocab_size, (len(ids),), generator=generator)
    masked = torch.where(chance < 0.8, torch.full_like(ids, mask_id), ids)
    return torch.where(chance >= 0.9, words, masked)


Replacement = Callable[[Tensor, int, int, torch.Generator | None], Tensor]


def mask_text(
    text: Tensor,
    text_real: Tensor | None,
    ratio: float,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    replace: Replacement = replace_bert,
) -> tuple[Tensor, Tensor]:
    """Hide a share of the words: (input ids int64 (B, T), hidden bool (B, T)).

    text: int64 (B, T) on the CPU. text_real: bool (B, T), True = a real token; None = all are.
    Specials are never hidden. Of n words round(ratio * n) are hidden, one at least (a text
    without words hides none). replace: what a hidden word becomes in the input; the loss is taken
    at all hidden places, also where the word happens to stay.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio} is not in 0..1")
    words = torch.isin(text, torch.tensor(SPECIAL_IDS), invert=True)
    if text_real is not None:
        words &= text_real
    number = words.sum(dim=1, keepdim=True)
    count = (ratio * number + 0.5).floor().clamp(min=1 if ratio else 0).minimum(number)
    rank = torch.rand(text.shape, generator=generator).masked_fill(~words, 2).argsort().argsort()
    hidden = rank < count
    ids = text.clone()
    ids[hidden] = replace(text[hidden], mask_id, vocab_size, generator)
    return ids, hidden


def mask_differences(
    text: Tensor, other: Tensor, text_real: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Hide at once what another caption has not in the same place: (input ids, hidden).

    text, other: int64 (B, T), two captions of the same words. text_real: bool (B, T), True = a
    token of `text`. Specials are never hidden.
    Departure: the paper hides at random, which leaves words that give others away.
    """
    specials = torch.isin(text, torch.tensor(SPECIAL_IDS, device=text.device))
    hidden = (text != other) & text_real & ~specials
    return text.masked_fill(hidden, mask_id), hidden


def mask_span(
    text: Tensor, ratio: float, mask_id: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide one run of neighbouring words of each text: (input ids, hidden), as `mask_text`.

    Not the paper's: the control in which the nearest visible words are further away.
    """
    words = torch.isin(text, torch.tensor(SPECIAL_IDS), invert=True)
    hidden = torch.zeros_like(words)
    for row, places in enumerate(words):
        index = places.nonzero().flatten()
        count = min(len(index), max(1, round(ratio * len(index))))
        start = int(torch.randint(0, len(index) - count + 1, (), generator=generator))
        hidden[row, index[start : start + count]] = True
    return text.masked_fill(hidden, mask_id), hidden
