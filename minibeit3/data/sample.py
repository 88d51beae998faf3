"""The one sample type that every dataset of the lab yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training or evaluation item; a field that a task does not have keeps its default.

    key: stable identifier, independent of order and workers ("emoji/noto/1f431").
    image: uint8 (3, H, W) RGB, or None for text-only items.
    image_b: uint8 (3, H, W), the second picture of an NLVR2 pair.
    texts: captions of the image, or the single question, statement or gloss; plain text.
    label: class index of classification tasks, 0/1 of NLVR2 statements.
    answers: VQA answer -> soft score in [0, 1].
    regions: int64 (H, W), class of every pixel, 255 = ignore (segmentation).
    boxes: float32 (n, 4), x0 y0 x1 y1 in pixels, one row per object of the image.
    info: everything else that an evaluator may want (scene graph, split, style), JSON-like.
    """

    key: str
    image: torch.Tensor | None = None
    image_b: torch.Tensor | None = None
    texts: tuple[str, ...] = ()
    label: int | None = None
    answers: Mapping[str, float] = field(default_factory=dict)
    regions: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    info: Mapping[str, object] = field(default_factory=dict)
