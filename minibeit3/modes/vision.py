"""Vision encoder mode: images alone through the V experts (paper, section 2.1, figure 3)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.init import initialise, stochastic_depth
from minibeit3.losses import dice_loss, soft_target_cross_entropy
from minibeit3.routing import LayerRoute, routes_for
from minibeit3.visibility import see


class ImageClassifier(nn.Module):
    """Mean of the patches, norm, one linear layer (released code, ImageNet).

    Departure: the paper classifies by class names in the dual mode (section 3.2; modes.dual).
    The released model's backbone has no final norm (`final_norm=False`).
    """

    RELEASED_HEAD_KEYS: ClassVar[dict[str, str]] = {
        "fc_norm.weight": "norm.weight",
        "fc_norm.bias": "norm.bias",
        "head.weight": "head.weight",
        "head.bias": "head.bias",
    }

    def __init__(
        self, backbone: Backbone, classes: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {"classes": classes}
        self.norm = nn.LayerNorm(backbone.config.width)
        self.head = nn.Linear(backbone.config.width, classes)
        initialise(self.head, 1, generator)
        self.head.weight.data.mul_(0.001)

    def forward(self, image: Tensor) -> Tensor:
        """Float image (B, C, H, W) to logits (B, classes)."""
        x = self.backbone(image).image[:, 1:]  # without [CLS]
        return self.head(self.norm(x.mean(dim=1)))

    def loss(self, image: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with int64 classes (B,), or with probabilities (B, classes) as they are."""
        if targets.is_floating_point():
            return soft_target_cross_entropy(self(image), targets)
        return F.cross_entropy(self(image), targets, label_smoothing=smoothing)


class SemanticSegmenter(nn.Module):
    """Patches of four layers, fused, every patch grown to 4 x 4 cells, then to pixels.

    Departure: the paper uses ViT-Adapter and Mask2Former (section 3.2), whose code is not released.
    """

    def __init__(
        self, backbone: Backbone, classes: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {"classes": classes}
        depth = backbone.config.depth
        self.layers = sorted({-(-depth * part // 4) for part in (1, 2, 3, 4)})  # counted from 1
        self.head = CellsOfPatches(len(self.layers), backbone.config.width, classes)
        initialise(self.head, 1, generator)

    def forward(self, image: Tensor) -> Tensor:
        """Float image (B, C, H, W) to logits of every pixel (B, classes, H, W)."""
        x = self.head(self.levels(image), self.backbone.config.grid)
        return F.interpolate(x, image.shape[-2:], mode="bilinear", align_corners=False)

    def levels(self, image: Tensor) -> list[Tensor]:
        """Patches (B, N, D) after each of `self.layers`: `encode` of the backbone, opened up."""
        c, backbone = self.backbone.config, self.backbone
        x, routes, found = backbone.embed(image), routes_for(c, paired=False), []
        seen = see(x, 0, None, None)
        scales = stochastic_depth(c.drop_path if backbone.training else 0.0, c.depth, x, 0)
        for i, block in enumerate(backbone.blocks):
            x = block(x, LayerRoute(routes[i], routes[i], 0), seen, scales[i], None)
            if i + 1 in self.layers:
                found.append(x.image[:, 1:])
        return found

    def loss(self, image: Tensor, regions: Tensor) -> Tensor:
        """Cross-entropy plus dice loss (as Mask2Former) with the class of every pixel.

        regions: int64 (B, H, W), 255 = ignore.
        """
        logits = self(image)
        cross_entropy = F.cross_entropy(logits, regions, ignore_index=255)
        return cross_entropy + dice_loss(logits, regions)


class CellsOfPatches(nn.Module):
    """The head of `SemanticSegmenter`: patches of several layers to a map of 4 x 4 cells each."""

    def __init__(self, levels: int, width: int, classes: int) -> None:
        super().__init__()
        cell_width = max(1, width // 4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels))
        self.grow = nn.Linear(levels * width, 16 * cell_width)
        self.smooth = nn.Conv2d(cell_width, cell_width, kernel_size=3, padding=1)
        self.classes = nn.Conv2d(cell_width, classes, kernel_size=1)

    def forward(self, levels: list[Tensor], grid: int) -> Tensor:
        """Patches (B, grid * grid, D) of each layer to logits (B, classes, 4 grid, 4 grid)."""
        x = torch.cat([norm(x) for norm, x in zip(self.norms, levels, strict=True)], dim=-1)
        x = F.gelu(self.grow(x))
        x = rearrange(x, "B (h w) (p q D) -> B D (h p) (w q)", h=grid, p=4, q=4)
        return self.classes(F.gelu(self.smooth(x)))
