"""Where attention leads through all layers: rollout, relevance, shares, scores, and few bytes.

Pure numpy. Letters: L layers, H heads, S tokens of the image (I, [CLS] first) and then the text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minibeit3.explore.core import Bools, Floats

SHARES = ("of image tokens to the text", "of text tokens to the image", "of all to [CLS]")


def rollout(patterns: Floats) -> Floats:
    """Attention through layers, (S, S), rows sum to 1; patterns: (L, H, S, S), first layer first.

    Each layer is the mean of its heads and of what the residual passes on, in equal parts
    (Abnar and Zuidema, arXiv 2005.00928).
    """
    flow = np.eye(patterns.shape[-1])
    for layer in patterns.mean(axis=1):
        flow = (layer + np.eye(len(layer))) / 2 @ flow
    return flow


def relevance(patterns: Floats, gradients: Floats) -> Floats:
    """What each token owes to the others, (S, S) without itself; both (L, H, S, S).

    gradients: of the explained number by the weights. Per layer R += A R with A the mean over
    heads of the positive part of gradient x weight (Chefer et al., arXiv 2103.15679, eq. 5, 6).
    """
    size = patterns.shape[-1]
    found = np.eye(size)
    for weights, gradient in zip(patterns, gradients, strict=True):
        found += np.clip(gradient * weights, 0, None).mean(axis=0) @ found
    return found - np.eye(size)


def shares(patterns: Floats, image_tokens: int) -> Floats:
    """Mean weight between the modalities, (L, H, 3), by `SHARES`; patterns: (L, H, S, S)."""
    if patterns.shape[-1] == image_tokens:
        zero = np.zeros(patterns.shape[:2])
        crossing = [zero, zero]
    else:
        crossing = [
            patterns[:, :, :image_tokens, image_tokens:].sum(-1).mean(-1),
            patterns[:, :, image_tokens:, :image_tokens].sum(-1).mean(-1),
        ]
    return np.stack([*crossing, patterns[..., 0].mean(-1)], axis=-1)


def packed(weights: Floats) -> bytes:
    """Rows (..., S) as bytes of their maxima, then the maxima as float32: a quarter of the size."""
    rows = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]), np.float32)
    most = rows.max(axis=1)
    scaled = rows / np.maximum(most, 1e-30)[:, None]
    return (scaled * 255).round().astype(np.uint8).tobytes() + most.tobytes()


def unpacked(data: bytes, tokens: int) -> Floats:
    """Rows (rows, tokens) of `packed`, each weight within 1/510 of its row's maximum."""
    rows = len(data) // (tokens + 4)
    values = np.frombuffer(data, np.uint8, rows * tokens).reshape(rows, tokens)
    most = np.frombuffer(data, np.float32, offset=rows * tokens)
    return values / 255 * most[:, None]


class Region(NamedTuple):
    """A place in the picture. cover: (N,), which part of each patch it fills, 0..1."""

    name: str
    cover: Floats


def region_of(name: str, inside: Bools, grid: int) -> Region:
    """A region of pixels, bool (H, W), as parts of grid x grid patches."""
    rows, columns = (np.arange(side) * grid // side for side in inside.shape)
    patch = (rows[:, None] * grid + columns[None]).ravel()
    total = np.bincount(patch, minlength=grid * grid)
    hits = np.bincount(patch, weights=inside.ravel(), minlength=grid * grid)
    return Region(name, hits / np.maximum(total, 1))


class RegionScore(NamedTuple):
    """mass: share of the patches' weight on the region. area: share of the picture it covers.

    hit: True = the strongest patch lies inside. mass / area is 1 for weights spread evenly.
    """

    mass: float
    area: float
    hit: bool


def region_score(weights: Floats, region: Region) -> RegionScore:
    """How well weights of patches (N,) or (h, w) find a known region."""
    flat = weights.reshape(-1)
    mass = float((flat * region.cover).sum() / max(float(flat.sum()), 1e-12))
    return RegionScore(mass, float(region.cover.mean()), bool(region.cover[flat.argmax()] >= 0.5))


def region_sentence(weights: Floats, regions: Sequence[Region], chosen: int) -> str:
    """The score on one of `regions` in words; nothing for chosen = -1."""
    if chosen < 0:
        return ""
    region = regions[chosen]
    mass, area, hit = region_score(weights, region)
    where = "inside" if hit else "outside"
    return (
        f" {100 * mass:.1f}% of the patches' weight lies on {region.name}, which covers "
        f"{100 * area:.1f}% of the picture; the strongest patch is {where}."
    )
