"""Fusion encoder mode by hidden words: what stands behind a question, how well a caption fits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.init import initialise
from minibeit3.vocabulary import VocabularyHead


def with_mask(
    text: Tensor, real: Tensor | None, mask_id: int, eos_id: int, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Texts int64 (B, T) with <mask> before </s>, what is real in them, and where <mask> is.

    real: bool (B, T), True = a token of the text, None = all. limit: tokens at most. ids and real
    are one place wider than `text`, where int64 (B,) says the place of <mask>. A text that fills
    the limit loses its last word.
    """
    batch, width = text.shape
    real = torch.ones_like(text, dtype=torch.bool) if real is None else real
    at = (real.sum(dim=1) - 1).clamp(max=limit - 2)
    place = torch.arange(min(width + 1, limit), device=text.device).expand(batch, -1)
    ids = torch.cat([text, text.new_full((batch, 1), eos_id)], dim=1)[:, : place.shape[1]]
    ids = ids.masked_fill(place == at[:, None], mask_id)
    ids = ids.masked_fill(place == at[:, None] + 1, eos_id)
    return ids, place <= at[:, None] + 1, at


def at_mask(
    backbone: Backbone, image: Tensor, text: Tensor, real: Tensor | None, mask_id: int, eos_id: int
) -> Tensor:
    """Features (B, D) of a <mask> behind each text, beside its image; texts as in `with_mask`."""
    limit = backbone.config.max_text_length
    ids, real, at = with_mask(text, real, mask_id, eos_id, limit)
    x = backbone(image, ids, real).text
    return x[torch.arange(len(x), device=x.device), at]


def check_ids(backbone: Backbone, mask_id: int, eos_id: int) -> None:
    """ValueError when the two ids are the same, or none of the backbone's."""
    vocab_size = backbone.config.vocab_size
    if mask_id == eos_id or not all(0 <= i < vocab_size for i in (mask_id, eos_id)):
        raise ValueError(
            f"mask_id {mask_id} and eos_id {eos_id} must be two ids in 0..{vocab_size - 1}"
        )


class ClozeAnswerer(nn.Module):
    """Puts <mask> behind the question and reads it there, one logit per answer.

    Departure: the released model reads [CLS] by fresh layers (`VisualQuestionAnswerer`). Masked
    data modelling never trains [CLS], but it has taught every <mask> to find a word in the picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        answers: int,
        mask_id: int,
        eos_id: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_ids(backbone, mask_id, eos_id)
        self.backbone, self.mask_id, self.eos_id = backbone, mask_id, eos_id
        self.settings = {"answers": answers, "mask_id": mask_id, "eos_id": eos_id}
        self.head = nn.Linear(backbone.config.width, answers)
        initialise(self.head, 1, generator)

    @torch.no_grad()
    def start_from(self, words: nn.Linear, pieces: Sequence[Sequence[int]]) -> None:
        """Begin with the rows of a head for words; an answer of several pieces with their mean.

        pieces: ids of each answer's pieces. The biases stay 0: how often captions use a word says
        nothing about answers.
        """
        for row, ids in zip(self.head.weight, pieces, strict=True):
            if not ids:
                raise ValueError(f"an answer has no pieces: {list(map(list, pieces))}")
            row.copy_(words.weight[list(ids)].mean(dim=0))

    def forward(self, image: Tensor, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """Image (B, C, H, W) and question, int64 ids (B, T) up to </s>, to logits (B, answers).

        text_real: bool (B, T), True = a real word; None = all are.
        """
        return self.head(at_mask(self.backbone, image, text, text_real, self.mask_id, self.eos_id))


class ClozeReasoner(nn.Module):
    """Is the statement true of two images? Reads a <mask> behind it, beside one and the other.

    Departure: the released model reads [CLS] and <s> of both (`VisualReasoner`), and its head has
    to find for itself how they differ. Here it gets u, v, |u - v| and u * v of the two readings
    (arXiv 1705.02364): whether exactly one picture shows something is no sum of theirs.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_id: int,
        eos_id: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_ids(backbone, mask_id, eos_id)
        self.backbone, self.mask_id, self.eos_id = backbone, mask_id, eos_id
        self.settings = {"mask_id": mask_id, "eos_id": eos_id}
        width = backbone.config.width
        self.head = nn.Sequential(
            nn.LayerNorm(4 * width),
            nn.Linear(4 * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, 2),
        )
        initialise(self.head, 1, generator)

    def forward(
        self, image_a: Tensor, image_b: Tensor, text: Tensor, text_real: Tensor | None = None
    ) -> Tensor:
        """Images (B, C, H, W) and statement, int64 ids (B, T) up to </s>, to logits (B, 2).

        The second logit says "true". text_real: bool (B, T), True = a real word; None = all are.
        """
        images, twice = torch.cat([image_a, image_b]), torch.cat([text, text])
        real = None if text_real is None else torch.cat([text_real, text_real])
        read = at_mask(self.backbone, images, twice, real, self.mask_id, self.eos_id)
        u, v = read.split([len(image_a), len(image_b)])
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], dim=-1))


class CaptionScorer(nn.Module):
    """How likely the hidden tokens of a caption are beside a picture, all hidden at once.

    Departure: for image-text matching the field reads [CLS] by a fresh layer. Masked data modelling
    has taught these likelihoods already, so nothing is fresh. Two captions are told apart by what
    they do not share. Hidden one by one, as pseudo-log-likelihoods are (arXiv 1910.14659), a token
    is given away by its partner: of a star and a ring, what is left of the ring is the star.
    """

    def __init__(
        self, backbone: Backbone, mask_id: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        vocab_size = backbone.config.vocab_size
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"mask_id {mask_id} is not in 0..{vocab_size - 1}")
        self.backbone, self.mask_id = backbone, mask_id
        self.settings = {"mask_id": mask_id}
        self.mlm_head = VocabularyHead(backbone.config.width, vocab_size)
        initialise(self.mlm_head, 1, generator)

    def forward(self, image: Tensor, text: Tensor, text_real: Tensor, hidden: Tensor) -> Tensor:
        """Logarithms of the likelihoods (B,): the sum over each row's hidden tokens.

        image: (B, C, H, W). text: int64 ids (B, T), the whole caption. text_real: bool (B, T),
        True = a token. hidden: bool (B, T), True = to be guessed.
        """
        logs = text.new_zeros(text.shape, dtype=torch.float32)
        logs[hidden] = -self._surprise(image, text, text_real, hidden)
        return logs.sum(dim=1)

    def loss(self, image: Tensor, text: Tensor, text_real: Tensor, hidden: Tensor) -> Tensor:
        """Mean cross-entropy of the hidden tokens of true captions; arguments as of `forward`."""
        return self._surprise(image, text, text_real, hidden).mean()

    def _surprise(self, image: Tensor, text: Tensor, real: Tensor, hidden: Tensor) -> Tensor:
        """Minus the logarithm of every hidden token's likelihood, row by row, (n,)."""
        shown = text.masked_fill(hidden, self.mask_id)
        logits = self.mlm_head(self.backbone(image, shown, real).text[hidden])
        return F.cross_entropy(logits.float(), text[hidden], reduction="none")
