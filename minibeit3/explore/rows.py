"""Rows of labelled bars, and results files as rows to compare. Pure: numbers in, pictures out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from minibeit3.explore.core import GREY, INK, OUTLINE, PAPER, Drawn, Picture, cividis, font

LINE = 24


class Row(NamedTuple):
    """A bar: what it is, how long (0..1), what is written behind it. mark: True = outlined."""

    label: str
    share: float
    said: str
    mark: bool = False


def fitted(text: str, width: float, size: int) -> str:
    """The text, its end replaced by … where it does not fit into `width` pixels."""
    wide = font(size).getlength
    if wide(text) <= width:
        return text
    while text and wide(text + "…") > width:
        text = text[:-1]
    return text + "…"


def rows_picture(rows: Sequence[Row], width: int = 420, label: int = 150) -> Picture:
    """Bars one under the other: names at the left in `label` pixels, figures at the right."""
    out = Image.new("RGB", (width, LINE * max(1, len(rows))), PAPER)
    draw = ImageDraw.Draw(out)
    room = width - label - 96
    for at, row in enumerate(rows):
        y = at * LINE
        share = float(np.clip(row.share, 0, 1))
        colour = tuple(int(c) for c in cividis(np.array([share]))[0])
        draw.rectangle((label, y + 5, label + 1 + room * share, y + LINE - 6), fill=colour)
        draw.text((4, y + LINE / 2), fitted(row.label, label - 10, 14), INK, font(14), "lm")
        draw.text((label + room * share + 8, y + LINE / 2), row.said, INK, font(13), "lm")
        if row.mark:
            draw.rectangle((0, y + 1, width - 1, y + LINE - 2), outline=OUTLINE, width=2)
    return np.asarray(out)


def titled(title: str, picture: Picture) -> Picture:
    """The picture under a line of text."""
    out = Image.new("RGB", (picture.shape[1], picture.shape[0] + 26), PAPER)
    text = fitted(title, picture.shape[1] - 8, 15)
    ImageDraw.Draw(out).text((4, 12), text, INK, font(15), "lm")
    out.paste(Image.fromarray(picture), (0, 26))
    return np.asarray(out)


def below(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures one under the other on white."""
    width = max(picture.shape[1] for picture in pictures)
    parts = []
    for picture in pictures:
        room = ((0, gap), (0, width - picture.shape[1]), (0, 0))
        parts.append(np.pad(picture, room, constant_values=255))
    return np.concatenate(parts)


# ---- results files


class Figure(NamedTuple):
    """A measured number with its interval; low = high where none was given."""

    label: str
    value: float
    low: float
    high: float


def figures(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Figure]]:
    """Every number of a results file with the path to it.

    Known forms: a number; {"mean", "sd"}; [mean, sd, n] below "mean_sd_n"; a value beside "low"
    and "high". Rows of a list are named by their plain fields.
    """
    found = _figure(node, path)
    if found is not None:
        yield path, found
    elif isinstance(node, Mapping):
        for name, child in node.items():
            yield from figures(child, (*path, str(name)))
    elif isinstance(node, list):
        for at, child in enumerate(node):
            if isinstance(child, Mapping):
                plain = [f"{k} {v}" for k, v in child.items() if isinstance(v, str | int | float)]
                deep = {k: v for k, v in child.items() if isinstance(v, Mapping | list)}
                yield from figures(deep, (*path, ", ".join(plain) or str(at + 1)))


def _figure(node: Any, path: tuple[str, ...]) -> Figure | None:
    label = path[-1] if path else ""
    if _number(node):
        return Figure(label, node, node, node)
    if isinstance(node, list) and "mean_sd_n" in path[-2:-1] and all(map(_number, node)):
        return Figure(label, node[0], node[0] - node[1], node[0] + node[1])
    if isinstance(node, Mapping):
        if _number(node.get("mean")) and _number(node.get("sd")):
            return Figure(label, node["mean"], node["mean"] - node["sd"], node["mean"] + node["sd"])
        if _number(node.get("low")) and _number(node.get("high")):
            value = next(v for v in node.values() if _number(v))
            return Figure(label, value, node["low"], node["high"])
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def comparisons(results: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """What of a results file can be set side by side: figures that differ in one step of their
    path, which is * in the name."""
    found = list(figures(results))
    groups: dict[tuple[str, ...], list[Figure]] = {}
    for path, figure in found:
        for at, step in enumerate(path):
            key = (*path[:at], "*", *path[at + 1 :])
            groups.setdefault(key, []).append(figure._replace(label=step))
    return {" / ".join(key): rows for key, rows in groups.items() if len(rows) > 1}


def comparison_picture(title: str, rows: Sequence[Figure], width: int = 640) -> Drawn:
    """Bars with intervals; those that overlap the best one's are called within noise of it."""
    low, high = min(0.0, *(r.low for r in rows)), max(0.0, *(r.high for r in rows))
    span, label, top = max(high - low, 1e-12), 220, 30
    out = Image.new("RGB", (width, top + LINE * len(rows) + 8), PAPER)
    draw = ImageDraw.Draw(out)
    draw.text((4, 14), fitted(title, width - 8, 15), INK, font(15), "lm")
    scale = (width - label - 90) / span
    best = max(rows, key=lambda row: row.value)
    for at, row in enumerate(rows):
        y = top + at * LINE
        zero, end = (label + (value - low) * scale for value in (0.0, row.value))
        box = (min(zero, end), y + 5, max(zero, end) + 1, y + LINE - 6)
        draw.rectangle(box, fill=(86, 180, 233) if row is not best else (0, 114, 178))
        a, b = (label + (value - low) * scale for value in (row.low, row.high))
        if row.high > row.low:
            draw.line((a, y + LINE / 2, b, y + LINE / 2), fill=INK, width=2)
            for x in (a, b):
                draw.line((x, y + 7, x, y + LINE - 8), fill=INK, width=2)
        draw.text((4, y + LINE / 2), fitted(row.label, label - 12, 14), INK, font(14), "lm")
        said = f"{row.value:.3g}" + " best" * (row is best)
        draw.text((max(end, b) + 6, y + LINE / 2), said, INK, font(13), "lm")
    zero = label - low * scale
    draw.line((zero, top, zero, top + LINE * len(rows)), fill=GREY)
    near = [r.label for r in rows if r is not best and r.high >= best.low and r.high > r.low]
    alt = f"{title}: " + ", ".join(f"{r.label} {r.value:.3g}" for r in rows)
    alt += f". Largest: {best.label}."
    if near:
        alt += f" Its interval overlaps that of {', '.join(near)}: within noise."
    return Drawn(np.asarray(out), alt)
