"""Pictures of visual codes: the sentence of an image, what a code looks like, how often it is used.

Arrays in, arrays and alt sentences out, as in `core`.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from minibeit3.explore.core import (
    GREY,
    INK,
    OUTLINE,
    PAPER,
    Drawn,
    Floats,
    Picture,
    font,
    scaled,
)

Ints = NDArray[np.int64]

SIDE, BOX, GAP = 384, 84, 8


def nearest_patches(likeness: Floats, count: int) -> list[tuple[int, int]]:
    """(picture, patch) of the `count` largest values of likeness (n, N), the best first."""
    best = np.argsort(-likeness, axis=None, kind="stable")[:count]
    return [(int(i) // likeness.shape[1], int(i) % likeness.shape[1]) for i in best]


def code_grid(picture: Picture, codes: Ints, chosen: int) -> Picture:
    """The picture with the id of every patch, codes int64 (h, w); patches of `chosen` outlined."""
    step = SIDE // len(codes)
    out = Image.fromarray(scaled(picture, SIDE) // 2 + 127)
    draw = ImageDraw.Draw(out)
    for (row, column), code in np.ndenumerate(codes):
        x, y = column * step, row * step
        draw.rectangle((x, y, x + step, y + step), outline=(205, 205, 205))
        draw.text((x + step / 2, y + step / 2), str(code), INK, font(15), anchor="mm")
    for row, column in np.argwhere(codes == chosen):
        x, y = int(column) * step, int(row) * step
        draw.rectangle((x + 1, y + 1, x + step - 1, y + step - 1), outline=OUTLINE, width=3)
    return np.asarray(out)


def around(picture: Picture, patch: int, grid: int) -> Picture:
    """A patch, outlined, with one patch of its surroundings; white beyond the picture."""
    p = len(picture) // grid
    wide = np.pad(picture, ((p, p), (p, p), (0, 0)), constant_values=255)
    y, x = patch // grid * p, patch % grid * p
    out = Image.fromarray(scaled(np.ascontiguousarray(wide[y : y + 3 * p, x : x + 3 * p]), BOX))
    third = BOX // 3
    ImageDraw.Draw(out).rectangle((third, third, 2 * third, 2 * third), outline=OUTLINE, width=2)
    return np.asarray(out)


def usage_bar(counts: Ints, chosen: int, width: int) -> Picture:
    """Counts (V,) as columns, most used first, square-root scale; `chosen` marked from above."""
    height = 70
    out = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(out)
    order = np.argsort(-counts, kind="stable")
    tall = np.sqrt(counts[order] / max(1, counts.max())) * (height - 14)
    for place, code in enumerate(order):
        x0, x1 = place * width // len(order), (place + 1) * width // len(order) - 1
        if counts[code]:
            draw.rectangle((x0, height - max(1, tall[place]), max(x0, x1), height), fill=GREY)
        if code == chosen:
            draw.polygon([(x0 - 6, 0), (x0 + 6, 0), (x0, 10)], fill=OUTLINE)
            draw.line((x0, 10, x0, height), fill=OUTLINE, width=2)
    return np.asarray(out)


def code_picture(
    pictures: Picture, tokens: Ints, likeness: Floats, chosen: int, index: int, codes: int
) -> Drawn:
    """One picture's codes, the patches most like the code `chosen`, and the use of all codes.

    pictures: uint8 (n, s, s, 3). tokens: int64 (n, N), their codes. likeness: (n, N), cosine of
    every patch with the code. codes: size of the codebook.
    """
    grid = round(tokens.shape[1] ** 0.5)
    mine = tokens[index].reshape(grid, grid)
    counts = np.bincount(tokens.ravel(), minlength=codes)
    left, width = SIDE + 24, SIDE + 24 + 4 * BOX + 3 * GAP
    out = Image.new("RGB", (width, SIDE + 110), PAPER)
    draw = ImageDraw.Draw(out)
    out.paste(Image.fromarray(code_grid(pictures[index], mine, chosen)), (0, 0))
    use = f"{counts[chosen]} patches" if counts[chosen] else "dead here: no patch chose it"
    draw.text((left, 4), f"code {chosen}: {use}", INK, font(18))
    draw.text((left, 32), "patches nearest to it, best first", INK, font(14))
    best = nearest_patches(likeness, 12)
    for at, (which, patch) in enumerate(best):
        place = (left + at % 4 * (BOX + GAP), 60 + at // 4 * (BOX + GAP))
        out.paste(Image.fromarray(around(pictures[which], patch, grid)), place)
    out.paste(Image.fromarray(usage_bar(counts, chosen, width)), (0, SIDE + 40))
    dead = int((counts == 0).sum())
    said = f"{codes - dead} of {codes} codes used by {len(tokens)} pictures, most used first"
    draw.text((0, SIDE + 16), said, INK, font(14))
    alt = (
        f"Picture {index + 1}: {len(np.unique(mine))} different codes on {mine.size} patches; "
        f"code {chosen} covers {int((mine == chosen).sum())} of them, outlined. In all "
        f"{len(tokens)} pictures: {use}; {dead} of {codes} codes are dead."
    )
    return Drawn(np.asarray(out), alt)
