"""Pixels and word ids to tokens: the two streams that the blocks carry.

Letters: B samples, C channels, N patches, I = 1 + N image tokens, T text tokens, D width.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from minibeit3.checks import check_hidden, check_image, check_text
from minibeit3.config import BEiT3Config


class Streams(NamedTuple):
    """image (B, I, D), [CLS] first, and text (B, T, D); None where a batch has none.

    In a mixed batch the last `pairs` images belong to the first `pairs` texts: lone images, pairs
    and lone texts are one slice each.
    """

    image: Tensor | None
    text: Tensor | None

    def plus(self, delta: "Streams", scale: "Streams | None") -> "Streams":
        """Residual sum; scale: (B, 1, 1) factors of the samples (stochastic depth), or None."""

        def add(s: Tensor | None, d: Tensor | None, k: Tensor | None) -> Tensor | None:
            return s if s is None or d is None else s + (d if k is None else d * k)

        return Streams(*map(add, self, delta, scale or (None, None)))


class ImageEmbedding(nn.Module):
    """[CLS] and linear patches with learned positions (paper, section 2.1)."""

    def __init__(self, config: BEiT3Config, unread_rows: int = 0) -> None:
        """unread_rows: rows of the position table before the first used one (released: 2)."""
        super().__init__()
        self.config, self.unread_rows, size = config, unread_rows, config.patch_size
        self.patch = nn.Conv2d(config.channels, config.width, kernel_size=size, stride=size)
        self.cls = nn.Parameter(torch.zeros(config.width))
        self.mask = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(torch.zeros(unread_rows + config.image_tokens, config.width))

    def forward(self, image: Tensor, hidden_patches: Tensor | None = None) -> Tensor:
        """Float image (B, C, H, W) to (B, I, D); hidden_patches bool (B, N), True = hidden.

        A hidden patch is the mask vector plus its position: nothing of its pixels is left.
        """
        check_image(self.config, image)
        x = rearrange(self.patch(image), "B D h w -> B (h w) D")
        if hidden_patches is not None:
            check_hidden(hidden_patches, *x.shape[:2])
            x = torch.where(hidden_patches[..., None], self.mask.to(x.dtype), x)
        cls = repeat(self.cls.to(x.dtype), "D -> B 1 D", B=len(x))
        return torch.cat([cls, x], dim=1) + self.positions[self.unread_rows :]  # (B, I, D)


class TextEmbedding(nn.Module):
    """Words with learned positions that start anew after the image; no segment embedding."""

    def __init__(self, config: BEiT3Config, unread_rows: int = 0) -> None:
        super().__init__()
        self.config, self.unread_rows, c = config, unread_rows, config
        self.words = nn.Embedding(c.vocab_size, c.width)
        self.positions = nn.Parameter(torch.zeros(unread_rows + c.max_text_length, c.width))

    def forward(self, text: Tensor, start: int = 0) -> Tensor:
        """int64 ids (B, T) that stand at positions `start`, `start` + 1, ... to (B, T, D)."""
        check_text(self.config, text, start)
        first = self.unread_rows + start
        return self.words(text) + self.positions[first : first + text.shape[1]]
