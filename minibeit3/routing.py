"""Which expert handles which stream in which layer: a pure function of the config."""

from enum import StrEnum
from typing import NamedTuple

from minibeit3.checks import check_lengths
from minibeit3.config import BEiT3Config


class Expert(StrEnum):
    """V vision, L language, VL vision-language (paper, section 2.1)."""

    V = "V"
    L = "L"
    VL = "VL"


Spans = tuple[tuple[Expert, int], ...]


class Route(NamedTuple):
    """The expert of each stream in one layer, or spans (expert, tokens) that tile the stream.

    `Route(((Expert.V, 5), (Expert.L, 1), (Expert.V, 59)), Expert.L)` sends one patch astray.
    """

    image: Expert | Spans
    text: Expert | Spans


class LayerRoute(NamedTuple):
    """Routes of one layer for a batch of lone images, `pairs` image-text pairs and lone texts."""

    alone: Route
    paired: Route
    pairs: int


def route_layer(config: BEiT3Config, layer: int, paired: bool) -> Route:
    """Images to V, texts to L; both halves of a pair to VL near the top. Layer 0 is the first."""
    if paired and layer >= config.depth - config.fusion_layers:
        return Route(Expert.VL, Expert.VL)
    return Route(Expert.V, Expert.L)


def routes_for(config: BEiT3Config, paired: bool) -> tuple[Route, ...]:
    """`route_layer` of every layer, first to last."""
    return tuple(route_layer(config, layer, paired) for layer in range(config.depth))


def routing_table(config: BEiT3Config, image_len: int, text_len: int) -> list[list[Expert]]:
    """Expert of every token, depth rows of image_len + text_len; image first, [CLS] counts."""
    check_lengths(image_len, text_len)
    routes = routes_for(config, paired=image_len > 0 and text_len > 0)
    return [[Expert(i)] * image_len + [Expert(t)] * text_len for i, t in routes]
