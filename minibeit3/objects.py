"""The things of a picture: their boxes, classes, masks, and how much two of them overlap.

Boxes are x0 y0 x1 y1 in pixels, ends exclusive, as `data.scenes.boxes` gives them.

Legend: n and m things, H W pixels.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class Objects(NamedTuple):
    """boxes: float (n, 4). labels: int64 (n,). masks: bool (n, H, W), True = a pixel of the thing.

    scores: float (n,), how sure a detector is; ones for the truth.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    scores: Tensor

    def to(self, device: torch.device | str) -> "Objects":
        """The same on another device."""
        return Objects(*(part.to(device) for part in self))


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (n, 4) and (m, 4): float64 (n, m); 0 of empty boxes."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    return _ratio(both, areas[0][:, None] + areas[1][None] - both)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks bool (n, H, W) and (m, H, W): float64 (n, m)."""
    flat_a, flat_b = (rearrange(masks, "n H W -> n (H W)").float() for masks in (a, b))
    both = flat_a @ flat_b.T
    return _ratio(both, flat_a.sum(1)[:, None] + flat_b.sum(1)[None] - both)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression: int64 rows to keep, the surest first.

    The surest thing stays, and those of its class that overlap it by more than `iou` go; then the
    surest of what is left, and so on.
    """
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        same = labels[left] == labels[first]
        left = left[~(same & (box_iou(boxes[first][None], boxes[left])[0] > iou))]
    return torch.stack(kept) if kept else left


def _ratio(both: Tensor, either: Tensor) -> Tensor:
    # In double: an overlap of exactly 0.55 must reach the threshold 0.55.
    return both.double() / either.double().clamp(min=1e-12)
