"""Language encoder mode: texts alone through the L experts (paper, section 2.1, figure 3).

Neither the paper nor the released code has a text-only task; these heads mirror the vision ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.init import initialise


class TextClassifier(nn.Module):
    """Mean of the real words, norm, one linear layer, as ImageClassifier."""

    def __init__(
        self, backbone: Backbone, classes: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {"classes": classes}
        self.norm = nn.LayerNorm(backbone.config.width)
        self.head = nn.Linear(backbone.config.width, classes)
        initialise(self.head, 1, generator)

    def forward(self, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """int64 ids (B, T) to logits (B, classes); text_real: bool (B, T), True = a real word."""
        x = self.backbone(text=text, text_real=text_real).text
        if text_real is None:
            return self.head(self.norm(x.mean(dim=1)))
        real = text_real[..., None]
        count = real.sum(dim=1).clamp(min=1)  # a text of padding alone: its mean is zero
        return self.head(self.norm((x * real).sum(dim=1) / count))

    def loss(self, text: Tensor, text_real: Tensor | None, targets: Tensor) -> Tensor:
        """Cross-entropy with int64 classes (B,)."""
        return F.cross_entropy(self(text, text_real), targets)


class TokenTagger(nn.Module):
    """One label per word: norm and one linear layer on every text token."""

    def __init__(
        self, backbone: Backbone, labels: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, {"labels": labels}
        self.norm = nn.LayerNorm(backbone.config.width)
        self.head = nn.Linear(backbone.config.width, labels)
        initialise(self.head, 1, generator)

    def forward(self, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """int64 ids (B, T) to logits (B, T, labels); text_real: bool (B, T), True = a real word."""
        return self.head(self.norm(self.backbone(text=text, text_real=text_real).text))

    def loss(self, text: Tensor, text_real: Tensor | None, targets: Tensor) -> Tensor:
        """Cross-entropy with int64 labels (B, T), -100 = ignore, as padding always is."""
        if text_real is not None:
            targets = targets.masked_fill(~text_real, -100)
        return F.cross_entropy(self(text, text_real).flatten(0, 1), targets.flatten())
