"""Pictures of what a mask leaves to copy: distances to visible patches, captions with gaps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from minibeit3.explore.core import (
    GREY,
    INK,
    PAPER,
    Bools,
    Drawn,
    Floats,
    Picture,
    cividis,
    enlarge,
    fitting,
    font,
    scaled,
)

FAR = 4.0  # patches: from here on the colour stays the same


def nearest_visible(hidden: Bools) -> tuple[Floats, NDArray[np.int64]]:
    """Distance in patches to the nearest visible patch, and which one it is; both (h, w).

    hidden: bool (h, w), True = hidden. A visible patch is its own nearest, at distance 0. Patches
    are numbered row by row; of equally near ones the first is taken. Nothing visible: infinite
    distances and -1.
    """
    where = np.argwhere(np.ones_like(hidden)).astype(float)
    apart = np.linalg.norm(where[:, None] - where, axis=-1)
    apart[:, hidden.flatten()] = np.inf
    distance, source = apart.min(axis=1), apart.argmin(axis=1)
    source[np.isinf(distance)] = -1
    return distance.reshape(hidden.shape), source.reshape(hidden.shape)


def distance_picture(picture: Picture, hidden: Bools, side: int = 256) -> Drawn:
    """Hidden patches coloured by the distance to the nearest visible one, with the number."""
    distance, side = nearest_visible(hidden)[0], fitting(side, len(hidden))
    out = scaled(picture, side).copy()
    cover = enlarge(hidden, side)
    out[cover] = enlarge(cividis(np.minimum(distance / FAR, 1)), side)[cover]
    canvas = Image.fromarray(out)
    draw, step = ImageDraw.Draw(canvas), side // hidden.shape[0]
    for row, column in np.argwhere(hidden):
        far = distance[row, column]
        middle = ((column + 0.5) * step, (row + 0.5) * step)
        ink = PAPER if far < FAR / 2 else INK  # cividis runs from dark to bright
        label = f"{far:.1f}".removesuffix(".0") if np.isfinite(far) else "∞"
        draw.text(middle, label, ink, font(max(8, step * 2 // 5)), anchor="mm")
    said = f"{int(hidden.sum())} of {hidden.size} patches hidden"
    if 0 < hidden.sum() < hidden.size:
        said += f", on average {distance[hidden].mean():.2f} patches from the nearest visible one"
    return Drawn(np.asarray(canvas), f"Picture with {said}.")


def caption_picture(words: Sequence[str], hidden: Sequence[bool], width: int = 256) -> Drawn:
    """A caption on lines of `width` pixels, hidden words as grey boxes of one size."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    size, gap, line, box = 15, 5, 22, 40
    places, x, y = [], 0, 0
    for word, gone in zip(words, hidden, strict=True):
        wide = box if gone else int(draw.textlength(word, font(size))) + 1
        if x and x + wide > width:
            x, y = 0, y + line
        places.append((x, y, wide))
        x += wide + gap
    out = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(out)
    for (x, y, wide), word, gone in zip(places, words, hidden, strict=True):
        if gone:  # one size for all: the length of a word would give it away
            draw.rectangle((x, y + 3, x + wide - 1, y + line - 4), fill=GREY)
        else:
            draw.text((x, y + line // 2), word, INK, font(size), anchor="lm")
    shown = " ".join("[mask]" if gone else word for word, gone in zip(words, hidden, strict=True))
    return Drawn(np.asarray(out), f"{sum(hidden)} of {len(words)} words hidden: {shown}.")


def stacked(top: Drawn, bottom: Drawn) -> Drawn:
    """Two pictures of one width, one above the other, and both sentences."""
    gap = np.full((8, top.picture.shape[1], 3), 255, np.uint8)
    return Drawn(np.concatenate([top.picture, gap, bottom.picture]), f"{top.alt} {bottom.alt}")
