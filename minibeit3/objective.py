"""Masked data modelling: one task for images, texts and pairs (paper, section 2.2)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.pruned import hidden_features
from minibeit3.vocabulary import VocabularyHead


class MaskedBatch(NamedTuple):
    """Images alone, image-text pairs and texts alone, with something hidden in each.

    image: float (Bi, C, H, W); hidden_patches: bool (Bi, N), True = hidden; codes: int64 (Bi, N),
    the visual tokenizer's ids (or pixels, see `masked_pixel_loss`). text: int64 (Bt, T), hidden
    words replaced; text_real: bool (Bt, T), True = a real token; hidden_words: bool (Bt, T); words:
    int64 (Bt, T), the ids before hiding.
    pairs: the last `pairs` images belong to the first `pairs` texts. A missing stream is None.
    """

    image: Tensor | None = None
    hidden_patches: Tensor | None = None
    codes: Tensor | None = None
    text: Tensor | None = None
    text_real: Tensor | None = None
    hidden_words: Tensor | None = None
    words: Tensor | None = None
    pairs: int = 0

    def to(self, device: torch.device | str) -> "MaskedBatch":
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**moved)


class Guess(NamedTuple):
    """Logits at hidden places only, with what is true there.

    logits: (n, vocabulary). targets: int64 (n,). paired: bool (n,), True = in an image-text pair.
    """

    logits: Tensor
    targets: Tensor
    paired: Tensor


class MaskedDataModel(nn.Module):
    """Backbone and one linear head per vocabulary, on the last features (released checkpoints)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.settings: dict[str, object] = {}
        self.mlm_head = VocabularyHead(config.width, config.vocab_size)
        self.mim_head = VocabularyHead(config.width, config.visual_vocab_size)
        for head in (self.mlm_head, self.mim_head):
            nn.init.trunc_normal_(head.weight, std=0.02, a=-0.02, b=0.02)
            nn.init.zeros_(head.bias)

    def forward(
        self, batch: MaskedBatch, generator: torch.Generator | None = None
    ) -> tuple[Guess | None, Guess | None]:
        """Guesses of the hidden patches and of the hidden words; None where nothing is hidden.

        generator: of stochastic depth. The heads see hidden places only: no logits elsewhere, and
        in training no last block elsewhere (`pruned`).
        """
        b = batch
        x = self.backbone.embed(b.image, b.text, b.hidden_patches)
        at = b.hidden_patches, b.hidden_words
        image, text = hidden_features(self.backbone, x, *at, b.text_real, b.pairs, generator)
        patches = words = None
        if image is not None and b.hidden_patches is not None and b.codes is not None:
            at = b.hidden_patches
            row = torch.arange(len(at), device=at.device)[:, None]
            paired = (row >= len(at) - b.pairs).expand_as(at)
            patches = Guess(self.mim_head(image), b.codes[at], paired[at])
        if text is not None and b.hidden_words is not None and b.words is not None:
            at = b.hidden_words
            row = torch.arange(len(at), device=at.device)[:, None]
            words = Guess(self.mlm_head(text), b.words[at], (row < b.pairs).expand_as(at)[at])
        return patches, words


def masked_data_loss(
    patches: Guess | None, words: Guess | None, image_weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of the hidden words plus that of the hidden patches, and the metrics.

    image_weight: factor of the patches' term. The paper names no weights (FACTS 2.3). Metrics:
    loss and accuracy by stream, detached scalars: image, pair_image, text, pair_text.
    """
    total, metrics = torch.zeros(()), {}
    for name, guess, weight in (("image", patches, image_weight), ("text", words, 1.0)):
        if guess is None or len(guess.targets) == 0:
            continue
        losses = F.cross_entropy(guess.logits.float(), guess.targets, reduction="none")
        total = total.to(losses.device) + weight * losses.mean()
        right = (guess.logits.detach().argmax(dim=-1) == guess.targets).float()
        for stream, at in ((name, ~guess.paired), (f"pair_{name}", guess.paired)):
            count = at.sum().clamp(min=1)
            metrics[f"{stream}_loss"] = (losses.detach() * at).sum() / count
            metrics[f"{stream}_accuracy"] = (right * at).sum() / count
    return total, metrics


Loss = Callable[[Guess | None, Guess | None, float], tuple[Tensor, dict[str, Tensor]]]
"""`masked_data_loss`, or a loss in its place."""


def masked_pixel_loss(
    patches: Guess | None, words: Guess | None, image_weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """`masked_data_loss` without a visual tokenizer: squared error of the hidden patches' pixels.

    Departure, for the study of targets: `patches.targets` are float (n, C p p), each patch less
    its mean and divided by its deviation (MAE, arXiv 2111.06377), and the head's outputs are
    pixels. No accuracy of patches is told.
    """
    total, metrics = masked_data_loss(None, words)
    if patches is not None and len(patches.targets):
        losses = (patches.logits.float() - patches.targets).square().mean(dim=-1)
        total = total.to(losses.device) + image_weight * losses.mean()
        for stream, at in (("image", ~patches.paired), ("pair_image", patches.paired)):
            metrics[f"{stream}_loss"] = (losses.detach() * at).sum() / at.sum().clamp(min=1)
    return total, metrics
