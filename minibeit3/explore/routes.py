"""Who meets which expert in each way of using the model, what it touches, and what-if routes.

Pure functions without widgets; `explore.routing` puts controls around them.
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minibeit3.backbones import Backbone, build_backbone
from minibeit3.capture import capture
from minibeit3.config import BEiT3Config
from minibeit3.embed import Streams
from minibeit3.explore.core import EXPERTS, GREY, INK, LETTERS, PAPER, Drawn, font
from minibeit3.info import forward_flops
from minibeit3.routing import Expert, Route, Spans, routes_for
from minibeit3.visibility import caption_rule


class Use(NamedTuple):
    """A way of using the model. together: True = image and text are one sequence in attention."""

    image: bool
    text: bool
    together: bool
    sees: str


USES = {  # paper, section 2.1, figure 3
    "vision encoder": Use(True, False, False, "patches see patches"),
    "language encoder": Use(False, True, False, "words see words"),
    "fusion encoder": Use(True, True, True, "patches and words see each other"),
    "dual encoder": Use(True, True, False, "patches see patches, words see words"),
    "sequence-to-sequence": Use(
        True, True, True, "words see patches and earlier words, patches see patches"
    ),
}
STRAYS = ("nothing", "one patch", "whole image")


def stray_routes(config: BEiT3Config, use: Use, stray: str) -> tuple[Route, ...]:
    """The routes of `use`, with `stray` of the image sent through L wherever V is its expert.

    stray: one of STRAYS, "one patch" is the middle one. ValueError for anything else.
    """
    before = 1 + config.grid // 2 * config.grid + config.grid // 2
    one: Spans = (
        (Expert.V, before),
        (Expert.L, 1),
        (Expert.V, config.image_tokens - before - 1),
    )
    ways: dict[str, Expert | Spans] = dict(zip(STRAYS, (Expert.V, one, Expert.L), strict=True))
    if stray not in ways:
        raise ValueError(f"stray {stray!r} is none of {', '.join(STRAYS)}")
    routes = routes_for(config, use.together)
    return tuple(Route(ways[stray], r.text) if r.image is Expert.V else r for r in routes)


def spans_of(where: Expert | Spans, tokens: int) -> Spans:
    """A stream's part of a route as spans that tile its `tokens`."""
    return where if isinstance(where, tuple) else ((where, tokens),)


def experts_met(route: Route, use: Use) -> set[str]:
    """Letters of the experts that the streams of `use` meet in one layer."""
    streams = [spans_of(w, 1) for w, there in zip(route, use[:2], strict=True) if there]
    return {str(expert) for spans in streams for expert, length in spans if length}


@cache
def parameter_sizes(config: BEiT3Config) -> dict[str, int]:
    """Numbers in every tensor of the backbone; takes no memory."""
    with torch.device("meta"):
        backbone = build_backbone(config)
    return {name: p.numel() for name, p in backbone.named_parameters()}


def parameters_touched(config: BEiT3Config, routes: Sequence[Route], use: Use) -> int:
    """Backbone parameters that have a part in the output: tensors no token meets count nothing."""
    total = 0
    for name, size in parameter_sizes(config).items():
        expert = re.search(r"(?:blocks\.(\d+)\..*|norm\.)experts\.(\w+)\.", name)
        if expert:
            route = routes[int(expert[1])] if expert[1] else Route(Expert.V, Expert.L)
            total += size * (expert[2] in experts_met(route, use))
        elif name.startswith(("image_embed.", "text_embed.")):
            total += size * (use.image if name.startswith("image") else use.text)
        else:
            total += size
    return total


def flops(config: BEiT3Config, use: Use, text_len: int) -> int:
    """Of one forward pass of one sample (see `info.forward_flops`)."""
    if use.together:
        return forward_flops(config, "pair", text_len)
    image = forward_flops(config, "image", text_len) if use.image else 0
    return image + (forward_flops(config, "text", text_len) if use.text else 0)


@torch.no_grad()
def layer_outputs(
    backbone: Backbone, use: Use, image: Tensor, text: Tensor, routes: Sequence[Route]
) -> list[Streams]:
    """Both streams after each block, for one image (1, C, H, W) and one text (1, T)."""
    c = backbone.config
    causal = use is USES["sequence-to-sequence"]
    rule = caption_rule(c.image_tokens, text.shape[1]) if causal else None
    with capture(backbone.eval(), "blocks.*") as seen:
        backbone(
            image if use.image else None,
            text if use.text else None,
            visible=rule,
            pairs=int(use.together),
            routes=routes,
        )
    return [s for s in seen.values() if isinstance(s, Streams)]


def moved(before: Tensor | None, after: Tensor | None) -> float:
    """Mean over tokens of |after - before| / |before|, (B, tokens, D) each; 0 for no stream."""
    if before is None or after is None:
        return 0.0
    return float(((after - before).norm(dim=-1) / before.norm(dim=-1)).mean())


def distances(
    backbone: Backbone, use: Use, image: Tensor, text: Tensor, routes: Sequence[Route]
) -> list[tuple[float, float]]:
    """`moved` of the image and of the text tokens after every layer, against the usual routes."""
    usual = layer_outputs(backbone, use, image, text, routes_for(backbone.config, use.together))
    other = layer_outputs(backbone, use, image, text, routes)
    return [
        (moved(a.image, b.image), moved(a.text, b.text)) for a, b in zip(usual, other, strict=True)
    ]


def routes_picture(
    config: BEiT3Config,
    use: Use,
    routes: Sequence[Route],
    text_len: int,
    moves: Sequence[tuple[float, float]] | None = None,
) -> Drawn:
    """Layers from bottom to top: attention below, experts above, and how far tokens moved.

    moves: `distances` under these routes; None leaves the column empty.
    """
    step, width, left, right = max(15, min(34, 400 // config.depth)), 720, 70, 540
    lengths = (config.image_tokens * use.image, text_len * use.text)
    share = 0.68 if all(lengths) else float(use.image)
    split = left + round((right - left - 12 * all(lengths)) * share)
    sides = (left, split), (split + 12 * all(lengths), right)
    out = Image.new("RGB", (width, 30 + step * config.depth + 34), PAPER)
    draw = ImageDraw.Draw(out)
    titles = f"[CLS] and {config.patches} patches", f"{text_len} words"
    for (x0, x1), title, length in zip(sides, titles, lengths, strict=True):
        if length:
            draw.text(((x0 + x1) / 2, 14), title, INK, font(13), anchor="mm")
    heading = "tokens moved" if moves is not None else "(moves not measured)"
    draw.text((right + 14, 14), heading, INK, font(13), anchor="lm")
    for layer, route in enumerate(routes):
        y = 28 + (config.depth - 1 - layer) * step
        if step >= 18 or layer == 0 or not (layer + 1) % 5:
            draw.text((left - 8, y + step / 2), f"layer {layer + 1}", INK, font(12), anchor="rm")
        thin = y + round(step * 0.66)
        if use.together:  # one softmax over both: the strips of attention touch
            draw.rectangle((left, thin, right, y + step - 4), fill=GREY)
        for where, (x0, x1), length in zip(route, sides, lengths, strict=True):
            if not length:
                continue
            for expert, a, b in boxes(spans_of(where, length), x0, x1):
                draw.rectangle((a, y, b - 2, thin - 2), fill=EXPERTS[expert])
                spot = ((a + b - 2) / 2, (y + thin - 2) / 2)
                size = min(13, round(step * 0.62))
                draw.text(spot, expert, LETTERS[expert], font(size), anchor="mm")
                own = EXPERTS[expert] if config.variant == "released" else GREY
                draw.rectangle((a, thin, b - 2, y + step - 4), fill=own)
        if moves is not None:
            _draw_moves(draw, moves[layer], use, (right + 14, y, step - 3))
    _draw_legend(draw, config, left, 30 + step * config.depth + 8)
    return Drawn(np.asarray(out), routes_sentence(config, use, routes, text_len, moves))


def boxes(spans: Spans, x0: int, x1: int, least: int = 14) -> list[tuple[str, int, int]]:
    """Spans as (letters, left, right) between x0 and x1, none narrower than `least`."""
    total = sum(length for _, length in spans)
    widths = [max(least, round((x1 - x0) * n / total)) for _, n in spans if n]
    widths[0] -= sum(widths) - (x1 - x0)
    ends = [x0 + sum(widths[: i + 1]) for i in range(len(widths))]
    names = [str(expert) for expert, n in spans if n]
    return [(n, end - w, end) for n, end, w in zip(names, ends, widths, strict=True)]


def _draw_moves(
    draw: ImageDraw.ImageDraw, move: tuple[float, float], use: Use, at: tuple[int, int, int]
) -> None:
    """Two percentages, image above text; a full bar is 100%."""
    x, y, height = at
    shown = [(v, name) for v, name, there in zip(move, "VL", use[:2], strict=True) if there]
    each = height / len(shown)
    for row, (value, name) in enumerate(shown):
        top = y + row * each
        bar = 1 + 90 * min(1.0, value)
        draw.rectangle((x, top + 1, x + bar, top + each - 2), fill=EXPERTS[name])
        text = f"{100 * value:.1f}%"
        draw.text((x + bar + 5, top + each / 2), text, INK, font(round(min(12, each))), anchor="lm")


def _draw_legend(draw: ImageDraw.ImageDraw, config: BEiT3Config, x: int, y: int) -> None:
    """The three letters and the colour of attention."""
    for name, meaning in (("V", "vision"), ("L", "language"), ("VL", "vision-language")):
        draw.rectangle((x, y, x + 26, y + 18), fill=EXPERTS[name])
        draw.text((x + 13, y + 9), name, LETTERS[name], font(12), anchor="mm")
        draw.text((x + 32, y + 9), meaning, INK, font(13), anchor="lm")
        x += 60 + 7 * len(meaning)
    shared = config.variant == "paper"
    draw.rectangle((x, y + 6, x + 26, y + 12), fill=GREY)
    meaning = "attention, weights shared" if shared else "joint attention, weights V or L"
    draw.text((x + 32, y + 9), meaning, INK, font(13), anchor="lm")


def routes_sentence(
    config: BEiT3Config,
    use: Use,
    routes: Sequence[Route],
    text_len: int,
    moves: Sequence[tuple[float, float]] | None,
) -> str:
    """The picture in words."""
    met = ["/".join(sorted(experts_met(route, use), key=list(EXPERTS).index)) for route in routes]
    parts, layer = [], 1
    for names, run in groupby(met):
        last = layer + len(list(run)) - 1
        parts.append(f"layers {layer}-{last} {names}" if last > layer else f"layer {layer} {names}")
        layer = last + 1
    everything = sum(parameter_sizes(config).values())
    used = parameters_touched(config, routes, use)
    said = (
        f"{', '.join(parts)}; {use.sees}. Touches {used / 1e6:.1f} of {everything / 1e6:.1f} "
        f"million parameters, {flops(config, use, text_len) / 1e9:.2f} GFLOPs."
    )
    if moves is not None:
        ends = zip(("image", "text"), moves[-1], use[:2], strict=True)
        moved_by = [f"{name} tokens {100 * m:.1f}%" for name, m, there in ends if there]
        said += f" After the last layer: {' and '.join(moved_by)} away from the usual routes."
    return said
