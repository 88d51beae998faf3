"""Pictures of masks, routes and attention: arrays in, arrays, PNG bytes and alt sentences out.

Pictures are uint8 (H, W, 3). No widgets and no torch here, so that every explorer, test and
exported page draws the same. Magnitudes are cividis; experts are Okabe-Ito colours with letters.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

INK, PAPER, GREY, OUTLINE = (34, 34, 34), (255, 255, 255), (150, 150, 150), (213, 94, 0)
EXPERTS = {"V": (0, 114, 178), "L": (230, 159, 0), "VL": (0, 158, 115)}  # Okabe-Ito
LETTERS = {"V": PAPER, "L": INK, "VL": INK}  # contrast of 4.5 and more


@dataclass(frozen=True)
class Drawn:
    """A picture with the sentence that says the same to those who cannot see it."""

    picture: Picture
    alt: str

    def png(self) -> bytes:
        """The picture as PNG bytes of 256 colours, a third of the size: notebooks keep several."""
        return to_png(self.picture, colours=256)


def to_png(picture: Picture, colours: int | None = None) -> bytes:
    """uint8 (H, W, 3) as PNG bytes without metadata; the same pixels give the same bytes.

    colours: size of the palette, at most 256; None keeps every pixel as it is.
    """
    out, image = io.BytesIO(), Image.fromarray(picture)
    if colours is not None:
        image = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(out, "PNG", optimize=False)
    return out.getvalue()


def scaled(picture: Picture, side: int) -> Picture:
    """A square picture at `side` pixels, smooth."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def enlarge(cells: NDArray, side: int) -> NDArray:
    """A grid (h, w) at (side, side) pixels, each cell a block; side is a multiple of h and w."""
    rows, columns = cells.shape[:2]
    if side % rows or side % columns:
        raise ValueError(f"side {side} is no multiple of the grid {rows} x {columns}")
    return cells.repeat(side // rows, axis=0).repeat(side // columns, axis=1)


def fitting(side: int, grid: int) -> int:
    """The multiple of the grid that is nearest to `side`, as `enlarge` needs it."""
    return grid * max(1, round(side / grid))


def masked_picture(picture: Picture, hidden: Bools, side: int = 256) -> Drawn:
    """The photograph with hidden patches, bool (h, w), covered in grey, and the patch grid.

    side: pixels, or the nearest number that the grid divides.
    """
    side = fitting(side, len(hidden))
    base = scaled(picture, side).copy()
    base[enlarge(hidden, side)] = GREY
    step = side // hidden.shape[0]
    for at in range(0, side, step):
        base[at, :] = base[at, :] // 4 * 3 + 60
        base[:, at] = base[:, at] // 4 * 3 + 60
    count = int(hidden.sum())
    return Drawn(base, f"Picture with {count} of {hidden.size} patches hidden.")


def palette() -> list[int]:
    """Red, green and blue of the 256 colours of `cividis`, for the browser."""
    return cividis(np.arange(256) / 255).ravel().tolist()


def beside(drawn: Sequence[Drawn], gap: int = 16) -> Drawn:
    """Pictures next to each other, tops aligned on white, and their sentences in turn."""
    height = max(one.picture.shape[0] for one in drawn)
    parts = []
    for one in drawn:
        below = height - one.picture.shape[0]
        room = ((0, below), (0, gap * (one is not drawn[-1])), (0, 0))
        parts.append(np.pad(one.picture, room, constant_values=255))
    return Drawn(np.concatenate(parts, axis=1), " ".join(one.alt for one in drawn))


def cividis(values: Floats) -> Picture:
    """Values in 0..1 to colours, uint8 (..., 3)."""
    table = (np.asarray(colormaps["cividis"](np.arange(256)))[:, :3] * 255).astype(np.uint8)
    return table[(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def heat_picture(
    picture: Picture, weights: Floats, most: float, query: int | None = None, side: int = 256
) -> Picture:
    """The photograph under attention weights (h, w): strongest colour where they reach `most`.

    query: patch that asks, outlined; None = none. side: pixels, or the nearest number that the
    grid divides.
    """
    side = fitting(side, len(weights))
    grey = scaled(picture, side).astype(np.float32).mean(axis=-1, keepdims=True)
    share = enlarge(np.clip(weights / max(most, 1e-12), 0, 1), side)
    mixed = 0.45 * grey + 0.55 * cividis(share).astype(np.float32)
    out = Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    if query is not None:
        step = side // weights.shape[0]
        x, y = query % weights.shape[1] * step, query // weights.shape[1] * step
        ImageDraw.Draw(out).rectangle((x, y, x + step - 1, y + step - 1), outline=OUTLINE, width=4)
    return np.asarray(out)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same everywhere."""
    return ImageFont.load_default(size)


def word_bars(
    words: Sequence[str], weights: Floats, most: float, query: int | None, height: int = 256
) -> Picture:
    """Words one under the other with a bar of their weight, on the scale of the photograph."""
    width, step = 260, max(12, height // max(1, len(words)))
    out = Image.new("RGB", (width, max(height, step * len(words))), PAPER)
    draw = ImageDraw.Draw(out)
    for row, (word, weight) in enumerate(zip(words, weights, strict=True)):
        y, share = row * step, min(1.0, weight / max(most, 1e-12))
        if row == query:
            draw.rectangle((0, y, width - 1, y + step - 2), outline=OUTLINE, width=2)
        draw.text((6, y + step / 2), word[:12], INK, font(min(15, step)), anchor="lm")
        colour = tuple(int(c) for c in cividis(np.array([share]))[0])
        draw.rectangle((110, y + step * 0.2, 112 + 84 * share, y + step * 0.8), fill=colour)
        text = f"{100 * weight:.1f}%"
        draw.text((width - 6, y + step / 2), text, INK, font(min(13, step)), anchor="rm")
    return np.asarray(out)


def attention_rows(pattern: Floats, head: int | None, query: int, grid: int) -> tuple:
    """What one token attends to: weight of [CLS], patches (grid, grid), words (T,).

    pattern: (H, S, S) of one sample. head: None = the mean of all. query: token that asks.
    """
    row = pattern[:, query].mean(axis=0) if head is None else pattern[head, query]
    patches = row[1 : 1 + grid * grid].reshape(grid, grid)
    return float(row[0]), patches, row[1 + grid * grid :]


def attention_picture(
    picture: Picture,
    pattern: Floats,
    words: Sequence[str],
    query: int,
    head: int | None,
    grid: int,
) -> Drawn:
    """One token's attention over photograph and caption, both on one scale.

    pattern: (H, S, S). words: one per text token. query: 0 = [CLS], then patches, then words.
    """
    cls, patches, text = attention_rows(pattern, head, query, grid)
    most, first = max(float(patches.max()), float(text.max(initial=0))), 1 + grid * grid
    patch = query - 1 if 0 < query < first else None
    word = query - first if query >= first else None
    sides = heat_picture(picture, patches, most, patch), word_bars(words, text, most, word)
    height = max(side.shape[0] for side in sides)
    out = np.full((height, sides[0].shape[1] + 12 + sides[1].shape[1], 3), 255, np.uint8)
    out[: sides[0].shape[0], : sides[0].shape[1]] = sides[0]
    out[: sides[1].shape[0], sides[0].shape[1] + 12 :] = sides[1]
    name = token_name(query, grid, words)
    row, column = np.unravel_index(int(patches.argmax()), patches.shape)
    alt = (
        f"{name} attends {100 * (cls + patches.sum()):.0f}% to the image, "
        f"{100 * text.sum():.0f}% to the text; most to patch row {row + 1} column {column + 1}"
    )
    if len(words):
        alt += f" and to the word '{words[int(text.argmax())]}'"
    return Drawn(out, alt + ".")


def token_name(token: int, grid: int, words: Sequence[str]) -> str:
    """A token in words: [CLS], patch row r column c, or word 'cat'."""
    if token == 0:
        return "[CLS]"
    if token <= grid * grid:
        return f"patch row {(token - 1) // grid + 1} column {(token - 1) % grid + 1}"
    return f"word '{words[token - 1 - grid * grid]}'"


def routing_picture(
    tables: Mapping[str, Sequence[Sequence[str]]], width: int = 620, row_height: int = 22
) -> Drawn:
    """Which expert handles which token in which layer, a panel per kind of input.

    tables: title -> depth rows of expert names per token, first layer first (drawn at the bottom).
    Neighbouring tokens with one expert share a box with its letters.
    """
    depth = max(len(table) for table in tables.values())
    panel = (depth + 2) * row_height
    out = Image.new("RGB", (width, panel * len(tables) + row_height * 2), PAPER)
    draw = ImageDraw.Draw(out)
    most = max(len(table[0]) for table in tables.values())
    left, scale = 70, (width - 80) / most
    for index, (title, table) in enumerate(tables.items()):
        top = index * panel + row_height
        draw.text((left, top - 3), title, INK, font(15), anchor="ls")
        for layer, row in enumerate(table):
            y = top + 4 + (len(table) - 1 - layer) * row_height
            draw.text((left - 8, y + row_height / 2), f"layer {layer + 1}", INK, font(12), "rm")
            start = 0
            for end in range(1, len(row) + 1):
                if end < len(row) and row[end] == row[start]:
                    continue
                x0, x1 = left + start * scale, left + end * scale - 2
                draw.rectangle((x0, y, x1, y + row_height - 3), fill=EXPERTS[row[start]])
                middle = ((x0 + x1) / 2, y + row_height / 2 - 1)
                draw.text(middle, row[start], LETTERS[row[start]], font(13), anchor="mm")
                start = end
    y, x = panel * len(tables) + row_height // 2, left
    for name, meaning in (("V", "vision"), ("L", "language"), ("VL", "vision-language")):
        draw.rectangle((x, y, x + 26, y + 18), fill=EXPERTS[name])
        draw.text((x + 13, y + 9), name, LETTERS[name], font(12), anchor="mm")
        draw.text((x + 34, y + 9), f"{meaning} expert", INK, font(13), anchor="lm")
        x += 190
    said = []
    for title, table in tables.items():
        layers = ["/".join(dict.fromkeys(row)) for row in table]
        said.append(f"{title}: " + ", ".join(f"{i + 1} {names}" for i, names in enumerate(layers)))
    return Drawn(np.asarray(out), "Experts by layer. " + "; ".join(said) + ".")
