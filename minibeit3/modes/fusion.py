"""Fusion encoder mode: image-text pairs, VL experts on top (paper, section 2.1, figure 3)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.init import initialise
from minibeit3.losses import answer_loss


class VisualQuestionAnswerer(nn.Module):
    """The image's [CLS] through a pooler and two layers, one logit per answer (released, VQAv2).

    The released model's backbone has no final norm (`final_norm=False`).
    """

    RELEASED_HEAD_KEYS: ClassVar[dict[str, str]] = {
        "pooler.norm.weight": "pooler.0.weight",
        "pooler.norm.bias": "pooler.0.bias",
        "pooler.dense.weight": "pooler.1.weight",
        "pooler.dense.bias": "pooler.1.bias",
        "head.0.weight": "head.0.weight",
        "head.0.bias": "head.0.bias",
        "head.1.weight": "head.1.weight",
        "head.1.bias": "head.1.bias",
        "head.3.weight": "head.3.weight",
        "head.3.bias": "head.3.bias",
    }

    def __init__(
        self, backbone: Backbone, answers: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {"answers": answers}
        width = backbone.config.width
        self.pooler = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, answers),
        )
        for part in (self.pooler, self.head):
            initialise(part, 1, generator)

    def forward(self, image: Tensor, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """Image (B, C, H, W) and question, int64 ids (B, T), to logits (B, answers).

        text_real: bool (B, T), True = a real word; None = all are.
        """
        cls = self.backbone(image, text, text_real).image[:, 0]
        return self.head(self.pooler(cls))

    def loss(self, image: Tensor, text: Tensor, text_real: Tensor | None, scores: Tensor) -> Tensor:
        """`answer_loss` with soft scores (B, answers) in [0, 1]."""
        return answer_loss(self(image, text, text_real), scores)


class VisualReasoner(nn.Module):
    """Is the statement true of two images? Two pairs in one pass, then a head (released, NLVR2).

    The head reads [CLS] and <s> of the pair with the first image, then of the second.
    """

    RELEASED_HEAD_KEYS: ClassVar[dict[str, str]] = {
        "head.norm1.weight": "head.0.weight",
        "head.norm1.bias": "head.0.bias",
        "head.dense1.weight": "head.1.weight",
        "head.dense1.bias": "head.1.bias",
        "head.norm2.weight": "head.2.weight",
        "head.norm2.bias": "head.2.bias",
        "head.dense2.weight": "head.4.weight",
        "head.dense2.bias": "head.4.bias",
    }

    def __init__(self, backbone: Backbone, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {}
        width = backbone.config.width
        first, second = nn.Linear(4 * width, 2 * width), nn.Linear(2 * width, 2)
        for linear in (first, second):
            initialise(linear, 1, generator)
            linear.weight.data.mul_(0.001)
        norms = nn.LayerNorm(4 * width), nn.LayerNorm(2 * width)
        self.head = nn.Sequential(norms[0], first, norms[1], nn.GELU(), second)

    def forward(
        self, image_a: Tensor, image_b: Tensor, text: Tensor, text_real: Tensor | None = None
    ) -> Tensor:
        """Images (B, C, H, W) and statement, int64 ids (B, T), to logits (B, 2), 1 = true.

        text_real: bool (B, T), True = a real word; None = all are.
        """
        real = None if text_real is None else torch.cat([text_real, text_real])
        x = self.backbone(torch.cat([image_a, image_b]), torch.cat([text, text]), real)
        both = torch.cat([x.image[:, 0], x.text[:, 0]], dim=-1)  # (2 B, 2 D)
        return self.head(torch.cat(both.split([len(image_a), len(image_b)]), dim=-1))

    def loss(
        self,
        image_a: Tensor,
        image_b: Tensor,
        text: Tensor,
        text_real: Tensor | None,
        targets: Tensor,
    ) -> Tensor:
        """Cross-entropy with int64 (B,), 1 = the statement is true."""
        return F.cross_entropy(self(image_a, image_b, text, text_real), targets)
