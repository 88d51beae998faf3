"""Dual encoder mode: images and texts apart, compared by direction (paper, section 2.1, fig. 3)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.init import initialise
from minibeit3.losses import contrastive_loss


class ImageTextRetriever(nn.Module):
    """[CLS] of the image and <s> of the text, each through a matrix, as unit vectors (released)."""

    RELEASED_HEAD_KEYS: ClassVar[dict[str, str]] = {
        "vision_head.weight": "image_head.weight",
        "language_head.weight": "text_head.weight",
        "logit_scale": "logit_scale",
    }

    def __init__(self, backbone: Backbone, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {}
        width = backbone.config.width
        self.image_head = nn.Linear(width, width, bias=False)
        self.text_head = nn.Linear(width, width, bias=False)
        for head in (self.image_head, self.text_head):
            initialise(head, 1, generator)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_image(self, image: Tensor) -> Tensor:
        """Float image (B, C, H, W) to unit vectors (B, D)."""
        return F.normalize(self.image_head(self.backbone(image).image[:, 0]), dim=-1)

    def embed_text(self, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """int64 ids (B, T) to unit vectors (B, D); text_real: bool (B, T), True = a real word."""
        x = self.backbone(text=text, text_real=text_real).text
        return F.normalize(self.text_head(x[:, 0]), dim=-1)

    def classify(self, image: Tensor, name_embeddings: Tensor) -> Tensor:
        """Logits (B, names) of images: classification by class names (paper, section 3.2).

        name_embeddings: (names, D) from `embed_text` of the class names, computed once.
        """
        return self.logit_scale.exp() * self.embed_image(image) @ name_embeddings.T

    def forward(self, image: Tensor, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """Scaled similarity (images, texts) of every image to every text."""
        return self.classify(image, self.embed_text(text, text_real))

    def loss(
        self,
        image: Tensor,
        text: Tensor,
        text_real: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> Tensor:
        """`contrastive_loss` of a batch whose rows belong together."""
        x = self.backbone(image, text, text_real, pairs=0)  # one pass, yet nobody meets
        image_vectors = F.normalize(self.image_head(x.image[:, 0]), dim=-1)
        text_vectors = F.normalize(self.text_head(x.text[:, 0]), dim=-1)
        return contrastive_loss(image_vectors, text_vectors, self.logit_scale.exp(), image_ids)
