"""The figures that a reader of the paper looks for, drawn from the lab's own model and data.

`architecture` shows a model with the shapes of one real pass, `five_modes` who meets which expert
and who sees whom in every use, `what_is_hidden` the masking of each kind of input.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from minibeit3.capture import capture
from minibeit3.config import BEiT3Config
from minibeit3.embed import Streams
from minibeit3.explore.core import (
    EXPERTS,
    GREY,
    INK,
    LETTERS,
    Drawn,
    Picture,
    beside,
    masked_picture,
)
from minibeit3.explore.hiding import caption_picture, stacked
from minibeit3.explore.routes import USES, Use, experts_met
from minibeit3.explore.rows import titled
from minibeit3.masking import (
    IMAGE_RATIO,
    PAIR_TEXT_RATIO,
    TEXT_RATIO,
    mask_patches,
    mask_text,
    replace_all,
)
from minibeit3.objective import MaskedDataModel
from minibeit3.routing import Route, routes_for
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.visibility import caption_rule

SIDES, BOTH = ((0.5, 4.6), (4.9, 8.2)), (0.5, 8.2)  # of the picture, of the text; of a pair
OUT = {
    "vision encoder": "class of the picture",
    "language encoder": "subject of the text",
    "fusion encoder": "answer to a question",
    "dual encoder": "two vectors, compared",
    "sequence-to-sequence": "caption, word by word",
}
PLAIN = (232, 232, 232)


def architecture(model: MaskedDataModel, image: Tensor, text: Tensor) -> Drawn:
    """The pretraining model with the shapes of one pass: a picture (1, C, H, W) and ids (1, T).

    Nothing is typed by hand: the shapes are those of the tensors that hooks have seen.
    """
    backbone, c = model.backbone, model.backbone.config
    with torch.no_grad(), capture(backbone, "blocks.*", "blocks.*.attn:pattern") as seen:
        x = backbone.embed(image, text)
        done = backbone(image, text)
        heads = model.mim_head(done.image[:, 1:]), model.mlm_head(done.text)
    routes = routes_for(c, paired=True)
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    ax = figure.subplots()
    said = [_row(ax, 0.0, ("pixels", "ids of the pieces"), (image, text))]
    said.append(_row(ax, 0.8, ("patches, [CLS], positions", "pieces, positions"), x))
    y = 1.6
    for route, run in groupby(range(c.depth), key=lambda layer: routes[layer]):
        layers = list(run)
        pattern, after = (seen[f"blocks.{layers[-1]}{end}"] for end in (".attn:pattern", ""))
        assert isinstance(pattern, Tensor) and isinstance(after, Streams)
        title = f"layers {layers[0] + 1} to {layers[-1] + 1}"
        met = sorted(experts_met(route, USES["fusion encoder"]), key=list(EXPERTS).index)
        told = f"attention over both, {c.heads} heads: {tuple(pattern.shape)}"
        _box(ax, (*BOTH, y, y + 0.42), told, GREY)
        names = [f"{name}: {c.width} → {c.ffn_width} → {c.width}" for name in met]
        for ends, name, expert in zip((BOTH,) if len(met) == 1 else SIDES, names, met, strict=True):
            _box(ax, (*ends, y + 0.55, y + 0.97), name, expert)
        ax.text(
            8.35, y + 0.48, f"{title},\neach part\nadded to\nits input", fontsize=9, va="center"
        )
        shapes = [str(tuple(s.shape)) for s in after if s is not None]
        for (x0, x1), shape in zip(SIDES, shapes, strict=True):
            ax.text((x0 + x1) / 2 + 0.15, y + 1.22, shape, fontsize=9, va="center")
            _arrow(ax, (x0 + x1) / 2, y + 0.98, y + 1.48)
        said.append(f"{title}: {told}, then {' and '.join(names)}")
        y += 1.5
    said.append(_row(ax, y, ("norm, code of each patch", "norm, piece at each place"), heads))
    for x0, x1 in SIDES:
        for low in (0.43, 1.23):
            _arrow(ax, (x0 + x1) / 2, low, low + 0.36)
    ax.set(xlim=(0.4, 9.5), ylim=(-0.1, y + 0.5))
    ax.axis("off")
    return Drawn(_pixels(figure), "From the input to the guesses. " + "; ".join(said) + ".")


def five_modes(config: BEiT3Config, places: tuple[int, int] = (5, 4)) -> Drawn:
    """Every use of one model: experts by layer above attention's strip, and who sees whom.

    places: image tokens and words of the small pictures of visibility; the routes are the config's.
    ValueError for more than 12 layers, which would not be readable.
    """
    if config.depth > 12:
        raise ValueError(f"{config.depth} layers do not fit: take a preset with at most 12")
    figure = Figure(figsize=(8.8, 4.6), layout="constrained")
    axes = figure.subplots(2, len(USES), height_ratios=(config.depth, 3.4))
    said = []
    for at, ((above, under), (name, use)) in enumerate(zip(axes.T, USES.items(), strict=True)):
        routes = routes_for(config, use.together)
        _lanes(above, use, routes)
        above.set_title(f"{name}\n→ {OUT[name]}", fontsize=8)
        sees = visible_to(use, *places)
        under.imshow(np.where(sees, 0.25, 1.0), cmap="gray", vmin=0, vmax=1)
        edges = np.arange(len(sees) + 1) - 0.5
        under.hlines(edges, -0.5, len(sees) - 0.5, color="white", linewidth=1)
        under.vlines(edges, -0.5, len(sees) - 0.5, color="white", linewidth=1)
        parts = [
            (n, what)
            for n, what, there in zip(places, ("patches", "words"), use[:2], strict=True)
            if there
        ]
        ends = np.cumsum([0, *(n for n, _ in parts)])
        middles = [(a + b - 1) / 2 for a, b in pairwise(ends)]
        under.set_xticks(middles, [what for _, what in parts], fontsize=8)
        under.set_yticks(middles, [what for _, what in parts], fontsize=8, rotation=90, va="center")
        under.tick_params(length=0)
        under.spines[:].set_visible(False)
        if at == 0:
            above.set_ylabel("layer", fontsize=9)
        met = ["/".join(sorted(experts_met(r, use), key=list(EXPERTS).index)) for r in routes]
        layers = ", ".join(f"{i} {m}" for i, m in enumerate(met, start=1))
        said.append(f"{name}: layers {layers}; {use.sees}; gives {OUT[name]}")
    alt = f"Five uses of one model of {config.depth} layers. {'. '.join(said)}."
    return Drawn(_pixels(figure), alt)


def visible_to(use: Use, image_len: int, text_len: int) -> np.ndarray:
    """Who sees whom in one use: bool (S, S) of the tokens that are there, True = may attend."""
    lengths = [n for n, there in zip((image_len, text_len), use[:2], strict=True) if there]
    if use is USES["sequence-to-sequence"]:
        return caption_rule(image_len, text_len).numpy()
    if use.together:
        return np.ones((sum(lengths), sum(lengths)), dtype=bool)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner[:, None] == owner


def what_is_hidden(
    picture: Picture,
    caption: str,
    text: str,
    tokenizer: TextTokenizer,
    grid: int,
    generator: torch.Generator,
    side: int = 192,
) -> Drawn:
    """A picture alone, a text alone and the pair, each as pretraining hides it (section 2.3)."""
    lone, paired = mask_patches(2, grid, IMAGE_RATIO, generator).view(2, grid, grid).numpy()

    def words(of: str, ratio: float) -> Drawn:
        ids, real = tokenizer.batch([of], max_length=64)
        known = tokenizer.mask_id, tokenizer.vocab_size
        hidden = mask_text(ids, real, ratio, *known, generator, replace_all)[1]
        pieces = [tokenizer.piece(i).replace("\u2581", "") for i in ids[0].tolist()]
        inner = slice(1, int(real.sum()) - 1)
        return caption_picture(pieces[inner], hidden[0, inner].tolist(), side)

    panels = {
        f"image: {IMAGE_RATIO:.0%} in blocks": masked_picture(picture, lone, side),
        f"text: {TEXT_RATIO:.0%} of the pieces": words(text, TEXT_RATIO),
        f"pair: {IMAGE_RATIO:.0%} and {PAIR_TEXT_RATIO:.0%}": stacked(
            masked_picture(picture, paired, side), words(caption, PAIR_TEXT_RATIO)
        ),
    }
    drawn = [
        Drawn(titled(name, d.picture), f"{name}. {d.alt.replace('Photograph', 'Picture')}")
        for name, d in panels.items()
    ]
    return beside(drawn, gap=24)


def _lanes(ax: Axes, use: Use, routes: Sequence[Route]) -> None:
    """One column of `five_modes`: boxes of experts with letters, the strip of attention below."""
    there = [at for at in (0, 1) if use[at]]
    spans = {0: (0.0, 1.0 if len(there) == 1 else 0.62), 1: (0.66 if len(there) == 2 else 0.0, 1.0)}
    for layer, route in enumerate(routes, start=1):
        if use.together:
            ax.add_patch(Rectangle((0, layer - 0.42), 1, 0.16, color=_unit(GREY)))
        for at in there:
            (x0, x1), expert = spans[at], str(route[at])
            box = Rectangle((x0, layer - 0.22), x1 - x0, 0.56, color=_unit(EXPERTS[expert]))
            ax.add_patch(box)
            ax.add_patch(Rectangle((x0, layer - 0.42), x1 - x0, 0.16, color=_unit(GREY)))
            ink = _unit(LETTERS[expert])
            ax.text((x0 + x1) / 2, layer + 0.06, expert, color=ink, ha="center", va="center")
    for at in there:
        name = ("image", "text")[at]
        ax.text(sum(spans[at]) / 2, 0.42, name, fontsize=8, ha="center", va="top")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.05, len(routes) + 0.5), xticks=[])
    ax.set_yticks(
        range(1, len(routes) + 1), [str(i) for i in range(1, len(routes) + 1)], fontsize=8
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _row(ax: Axes, y: float, names: Sequence[str], shapes: Sequence[Tensor | None]) -> str:
    """Two plain boxes with the shapes of two tensors; what they say."""
    told = [f"{n} {tuple(s.shape)}" for n, s in zip(names, shapes, strict=True) if s is not None]
    for ends, text in zip(SIDES, told, strict=True):
        _box(ax, (*ends, y, y + 0.42), text, PLAIN)
    return " and ".join(told)


def _box(
    ax: Axes, at: tuple[float, float, float, float], text: str, fill: str | tuple[int, int, int]
) -> None:
    """A box with its text; fill: the letters of an expert, or a colour."""
    x0, x1, y0, y1 = at
    colour, ink = (EXPERTS[fill], LETTERS[fill]) if isinstance(fill, str) else (fill, INK)
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=_unit(colour)))
    spot = (x0 + x1) / 2, (y0 + y1) / 2
    ax.text(*spot, text, color=_unit(ink), ha="center", va="center", fontsize=9.5)


def _arrow(ax: Axes, x: float, low: float, high: float) -> None:
    look = {"arrowstyle": "-|>", "color": _unit(INK), "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x, high), (x, low), arrowprops=look)


def _unit(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in colour)
    return red, green, blue


def _pixels(figure: Figure) -> Picture:
    """The figure at notebook width as uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
