"""Objects and their masks on the vision encoder: an anchor-free head on the grid of patches.

Departure: the paper detects with ViTDet's cascade and soft-NMS on large images (section 3.2), whose
code is not released. Here every patch grows to 2 x 2 cells, and each cell says what thing it lies
in, where that thing's sides are, and how the thing fills its box (after FCOS, arXiv 1904.01355).

Legend: B images, C classes, H W pixels, G cells, p pixels of a cell's side, m cells of a mask's
side, n things of an image, P cells that lie in things.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.init import initialise
from minibeit3.objects import Objects, suppress

GROWN = 2  # cells per side of a patch
MASK_SIDE = 14
CORE = 0.5  # a cell belongs to a thing when its centre is in this inner share of the box
FARTHEST = 4.0  # a side is at most e^4 cells away, so that no box overflows
RARE = 0.01  # what a fresh head thinks of every class: most cells are empty


class Cells(NamedTuple):
    """What every cell says.

    classes: logits (B, G, C). boxes: (B, G, 4), x0 y0 x1 y1 in pixels. masks: logits
    (B, G, m, m), over the box.
    """

    classes: Tensor
    boxes: Tensor
    masks: Tensor


class CellHead(nn.Module):
    """Patches, each grown to 2 x 2 cells, to what every cell says."""

    def __init__(self, patch_width: int, classes: int) -> None:
        super().__init__()
        width = max(1, patch_width // 2)  # of a cell: it covers a quarter of a patch
        self.norm = nn.LayerNorm(patch_width)
        self.grow = nn.Linear(patch_width, GROWN**2 * width)
        self.smooth = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.classes = nn.Linear(width, classes)
        self.sides = nn.Linear(width, 4)
        self.mask = nn.Linear(width, MASK_SIDE**2)

    def forward(self, patches: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, grid * grid, D) to logits of classes (B, G, C), of sides and of masks.

        sides: (B, G, 4), logarithms of cells from the centre. masks: logits (B, G, m, m).
        """
        x = rearrange(
            F.gelu(self.grow(self.norm(patches))),
            "B (h w) (p q D) -> B D (h p) (w q)",
            h=grid,
            p=GROWN,
            q=GROWN,
        )
        x = rearrange(x + F.gelu(self.smooth(x)), "B D h w -> B (h w) D")
        masks = rearrange(self.mask(x), "B G (m k) -> B G m k", m=MASK_SIDE)
        return self.classes(x), self.sides(x), masks


class ObjectDetector(nn.Module):
    """Class, box and mask of every object."""

    def __init__(
        self, backbone: Backbone, classes: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {"classes": classes}
        self.cell = backbone.config.patch_size / GROWN
        self.head = CellHead(backbone.config.width, classes)
        initialise(self.head, 1, generator)
        nn.init.constant_(self.head.classes.bias, math.log(RARE / (1 - RARE)))

    def forward(self, image: Tensor) -> Cells:
        """Float image (B, C, H, W) to the `Cells` of every image."""
        patches = self.backbone(image).image[:, 1:]
        classes, sides, masks = self.head(patches, self.backbone.config.grid)
        far = self.cell * sides.float().clamp(max=FARTHEST).exp()
        centres = self.centres(image.device)
        boxes = torch.cat([centres - far[..., :2], centres + far[..., 2:]], dim=-1)
        return Cells(classes, boxes, masks)

    def centres(self, device: torch.device) -> Tensor:
        """Centres of the cells, x and y in pixels, float (G, 2), row by row."""
        at = (torch.arange(GROWN * self.backbone.config.grid, device=device) + 0.5) * self.cell
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=-1)

    def loss(self, image: Tensor, objects: Sequence[Objects]) -> Tensor:
        """Focal loss of the classes, 1 - GIoU of the boxes, cross-entropy of the masks, summed.

        objects: what is in each image, boxes in pixels of `image`. Boxes and masks count at the
        cells that lie in a thing. Raises ValueError for labels that the head does not know.
        """
        cells, targets = self(image), [self.targets(one) for one in objects]
        logits = cells.classes.float()
        wanted = torch.zeros_like(logits)
        row = torch.cat([torch.full_like(t.cell, i) for i, t in enumerate(targets)])
        cell, labels, boxes, masks = (torch.cat(parts) for parts in zip(*targets, strict=True))
        wanted[row, cell, labels] = 1
        positives = max(1, len(cell))
        loss = focal_loss(logits, wanted).sum() / positives
        loss = loss + (1 - generalised_iou(cells.boxes[row, cell], boxes)).sum() / positives
        said = cells.masks[row, cell].float()
        difference = F.binary_cross_entropy_with_logits(said, masks, reduction="none")
        return loss + difference.mean(dim=(1, 2)).sum() / positives

    def targets(self, objects: Objects) -> "Targets":
        """The cells of an image that lie in a thing, each with its thing.

        A cell in the cores of two boxes takes the smaller one; a thing whose core meets no centre
        takes the nearest cell.
        """
        known = self.settings["classes"]
        if len(objects.labels) and not 0 <= objects.labels.min() <= objects.labels.max() < known:
            raise ValueError(f"labels {objects.labels.tolist()}: this head knows 0 .. {known - 1}")
        boxes, centres = objects.boxes, self.centres(objects.boxes.device)
        middle, size = (boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]
        away = (centres[None] - middle[:, None]).abs()  # (n, G, 2)
        inside = (away < size[:, None] * CORE / 2).all(dim=-1)
        nearest = away.square().sum(dim=-1).argmin(dim=1)
        inside[torch.arange(len(boxes), device=boxes.device), nearest] = True
        area = size.prod(dim=1)[:, None].expand_as(inside).masked_fill(~inside, torch.inf)
        if not len(boxes):
            none = boxes.new_zeros(0, dtype=torch.int64)
            return Targets(none, none, boxes, boxes.new_zeros(0, MASK_SIDE, MASK_SIDE))
        cell = inside.any(dim=0).nonzero()[:, 0]
        thing = area.argmin(dim=0)[cell]
        masks = crop(objects.masks, boxes)
        return Targets(cell, objects.labels[thing], boxes[thing], masks[thing])

    @torch.no_grad()
    def detect(
        self, image: Tensor, least: float = 0.05, overlap: float = 0.5, most: int = 50
    ) -> list[Objects]:
        """The things that are found in each image, the surest first, on the CPU.

        least: smallest score of a thing. overlap: two things of a class that overlap more are one.
        most: things of an image that are kept.
        """
        cells, side = self(image), image.shape[-1]
        found = []
        for logits, boxes, masks in zip(*(part.float().cpu() for part in cells), strict=True):
            scores, labels = logits.sigmoid().max(dim=1)
            sure = scores >= least
            sides = boxes[sure].clamp(0, side)
            kept = suppress(sides, scores[sure], labels[sure], overlap)[:most]
            found.append(
                Objects(
                    sides[kept],
                    labels[sure][kept],
                    paste(masks[sure][kept], boxes[sure][kept], side),
                    scores[sure][kept],
                )
            )
        return found


class Targets(NamedTuple):
    """cell, labels: int64 (P,). boxes: (P, 4). masks: float (P, m, m), what fills each box."""

    cell: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor


def focal_loss(logits: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that forgets what is easy, of each logit (arXiv 1708.02002, eq. 5).

    logits, wanted: the same shape, `wanted` 0 or 1.
    """
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    wrong = (logits.sigmoid() - wanted).abs()
    return (alpha * wanted + (1 - alpha) * (1 - wanted)) * wrong**gamma * cross


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each pair of boxes (P, 4), less the empty share of the box around both: (P,).

    The last part pulls boxes together that do not touch (arXiv 1902.09630).
    """
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    hull, shared = around.prod(dim=1), both.prod(dim=1)
    either = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - shared
    return shared / either - (hull - either) / hull


def crop(masks: Tensor, boxes: Tensor) -> Tensor:
    """Each mask bool (n, H, W) inside its box (n, 4) as float (n, m, m): 1 where it is True."""
    steps = (torch.arange(MASK_SIDE, device=boxes.device) + 0.5) / MASK_SIDE
    x, y = (
        (boxes[:, i, None] + steps * (boxes[:, i + 2] - boxes[:, i])[:, None]).long()
        for i in (0, 1)
    )
    x, y = x.clamp(0, masks.shape[2] - 1), y.clamp(0, masks.shape[1] - 1)
    row = torch.arange(len(masks), device=boxes.device)[:, None, None]
    return masks[row, y[:, :, None], x[:, None, :]].float()


def paste(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Mask logits (n, m, m) over their boxes (n, 4) as bool (n, side, side), False outside."""
    at = torch.arange(side, device=boxes.device) + 0.5
    x, y = (
        2 * (at - boxes[:, i, None]) / (boxes[:, i + 2] - boxes[:, i]).clamp(min=1e-3)[:, None] - 1
        for i in (0, 1)
    )  # -1 .. 1 over the box
    where = torch.stack(
        [x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1
    )
    drawn = F.grid_sample(
        masks[:, None], where, mode="bilinear", padding_mode="border", align_corners=False
    )
    inside = (where.abs() <= 1).all(dim=-1)
    return (drawn[:, 0] > 0) & inside
