"""Sequence-to-sequence mode: captions under the caption rule (paper, section 2.1, figure 3)."""

from contextlib import nullcontext
from functools import partial
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from minibeit3.backbones import Backbone
from minibeit3.cache import LayerCache
from minibeit3.decoding import Score, beam_search, decode, greedy, nucleus
from minibeit3.embed import Streams
from minibeit3.few_rows import LARGE, few_rows
from minibeit3.init import initialise
from minibeit3.losses import drop_worst, smoothed_divergence
from minibeit3.routing import routes_for
from minibeit3.visibility import caption_rule
from minibeit3.vocabulary import VocabularyHead


class ImageCaptioner(nn.Module):
    """Guesses hidden words from the image and the words before (released code, captioning).

    A word is read at its own place, where <mask> stands, not one place earlier as in GPT. Image
    and text are a pair: they take the pair's experts, although the image sees only itself.
    """

    RELEASED_HEAD_KEYS: ClassVar[dict[str, str]] = {
        "mlm_head.weight": "mlm_head.weight",
        "mlm_head.bias": "mlm_head.bias",
    }

    def __init__(
        self,
        backbone: Backbone,
        bos_id: int = 0,
        pad_id: int = 1,
        eos_id: int = 2,
        mask_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """mask_id: None = the last row of the vocabulary (released checkpoints: 64001 of 64010)."""
        super().__init__()
        vocab_size = backbone.config.vocab_size
        self.bos_id, self.pad_id, self.eos_id = bos_id, pad_id, eos_id
        self.mask_id = vocab_size - 1 if mask_id is None else mask_id
        ids = {"bos_id": bos_id, "pad_id": pad_id, "eos_id": eos_id, "mask_id": self.mask_id}
        if len(set(ids.values())) < 4 or not all(0 <= i < vocab_size for i in ids.values()):
            raise ValueError(f"{ids} must be four ids in 0..{vocab_size - 1}")
        self.backbone, self.settings = backbone, ids
        self.mlm_head = VocabularyHead(backbone.config.width, vocab_size)
        initialise(self.mlm_head, 1, generator)

    def features(self, image: Tensor, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """Text tokens (B, T, D) of the backbone under the caption rule."""
        rule = caption_rule(self.backbone.config.image_tokens, text.shape[-1], text.device)
        return self.backbone(image, text, text_real, visible=rule).text

    def forward(self, image: Tensor, text: Tensor, text_real: Tensor | None = None) -> Tensor:
        """Image (B, C, H, W) and int64 ids (B, T) to logits (B, T, V) of every text place.

        text_real: bool (B, T), True = a real word; None = all are.
        """
        return self.mlm_head(self.features(image, text, text_real))

    def loss(
        self,
        image: Tensor,
        text: Tensor,
        text_real: Tensor | None,
        hidden: Tensor,
        targets: Tensor,
        iteration: int = 0,
        smoothing: float = 0.1,
        drop_ratio: float = 0.2,
        drop_after: int = 12_000,
    ) -> Tensor:
        """Mean `smoothed_divergence` at the hidden places; the worst go after many iterations.

        text: int64 (B, T), what is shown. hidden: bool (B, T), True = chosen by `hide_words`.
        targets: int64 (B, T), the words before hiding.
        """
        if hidden.dtype != torch.bool or hidden.shape != text.shape or not hidden.any():
            raise ValueError(
                f"hidden is {hidden.dtype} {tuple(hidden.shape)} with {int(hidden.sum())} places, "
                f"not bool {tuple(text.shape)} with one or more: take it from hide_words"
            )
        logits = self.mlm_head(self.features(image, text, text_real)[hidden])
        losses = smoothed_divergence(logits, targets[hidden], smoothing)
        return drop_worst(losses, drop_ratio if iteration > drop_after else 0.0).mean()

    @torch.no_grad()
    def generate(
        self,
        image: Tensor,
        max_length: int | None = None,
        beams: int = 3,
        length_penalty: float = 0.6,
        temperature: float | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """One caption per image (B, C, H, W), as ids without <s>, </s>, <pad> and <mask>.

        max_length: at most max_length - 3 words, in every way of decoding (see `beam_search`);
        None = 32 (released recipe), or the model's limit if that is less.
        beams: 1 is greedy. temperature: None searches; a number draws words by `nucleus` from the
        CPU `generator` instead, and beams are not used.
        """
        limit = self.backbone.config.max_text_length
        max_length = min(32, limit) if max_length is None else max_length
        if not 4 <= max_length <= limit:
            raise ValueError(f"max_length {max_length} is not in 4..{limit}, the model's limit")
        if beams < 1 or length_penalty < 0:
            raise ValueError(f"beams {beams} must be >= 1, length_penalty {length_penalty} >= 0")
        if temperature is not None and generator is None:
            raise ValueError("sampling needs generator=torch.Generator().manual_seed(...)")
        active = [module for module in self.modules() if module.training]
        self.eval()  # stochastic depth has no place here
        try:
            score, start = self.scorer(image), self._start(image)
            if temperature is None and beams > 1:
                found = beam_search(score, start, self.eos_id, beams, max_length, length_penalty)
            else:
                choose = greedy
                if temperature is not None and generator is not None:
                    choose = partial(
                        nucleus, temperature=temperature, top_p=top_p, generator=generator
                    )
                found = list(decode(score, start, self.eos_id, max_length - 3, choose))
        finally:
            for module in active:
                module.training = True
        special = set(self.settings.values())
        return [[i for i in caption.tolist() if i not in special] for caption in found]

    def scorer(self, image: Tensor) -> Score:
        """Scores of the next word for `decoding`, by caches: each word costs two tokens.

        The image is encoded once: it sees no word, so no word can change it. All captions of an
        image, its beams, read the same keys and values of it: their words are one text, of which
        each caption sees its own. A step feeds every caption's newest word and a <mask>, reads the
        guesses at the masks, and drops these. Where captions change places nothing is moved: they
        see other words.
        """
        backbone, c = self.backbone, self.backbone.config
        routes, caches = routes_for(c, paired=True), [LayerCache() for _ in range(c.depth)]
        backbone.encode(backbone.embed(image), routes=routes, cache=caches)
        images, large = len(image), self.mlm_head.weight.numel() >= LARGE
        own = torch.ones(images, 0, dtype=torch.bool, device=image.device)  # (R, words of an image)

        def score(ids: Tensor, rows: Tensor | None) -> Tensor:
            nonlocal own
            own, beams = continued(own, rows, images), len(ids) // images
            newest = torch.stack([ids[:, -1], torch.full_like(ids[:, -1], self.mask_id)], dim=1)
            x = backbone.embed(text=newest, text_start=ids.shape[1] - 1).text
            x = rearrange(x, "(B beams) two D -> B (two beams) D", beams=beams)
            visible, own = step_rule(own, images, c.image_tokens)
            with few_rows() if large else nullcontext():  # small ones: the rule costs more
                x = backbone.encode(Streams(None, x), None, visible, routes=routes, cache=caches)
                assert x.text is not None
                logits = self.mlm_head(rearrange(x.text[:, beams:], "B beams D -> (B beams) D"))
            for cache in caches:
                cache.shorten(c.image_tokens + own.shape[1])
            return logits

        return score

    def _start(self, image: Tensor) -> Tensor:
        return torch.full((len(image), 1), self.bos_id, device=image.device)


def continued(own: Tensor, rows: Tensor | None, images: int) -> Tensor:
    """own[rows], bool (R, words of an image): True = the word stands in the row's caption.

    rows: as in `decoding.Score`; ValueError where a row continues a caption of another image.
    """
    if rows is None:
        return own
    before, now = len(own) // images, len(rows) // images
    if not torch.equal(rows // before, torch.arange(len(rows), device=rows.device) // now):
        raise ValueError(
            f"rows {rows.tolist()} of {images} images: {now} rows of the first, then of the next, "
            f"each continues one of its own image's {before}"
        )
    return own[rows]


def step_rule(own: Tensor, images: int, image_len: int) -> tuple[Tensor, Tensor]:
    """Who sees whom in a step of `ImageCaptioner.scorer`, and the words that each row has then.

    own: bool (R, words of an image), as in `continued`. Keys: the image, its words, the newest
    words of all its beams, their masks; queries: the newest words and the masks. Returns bool
    (B, 1, 2 beams, keys) and bool (R, words and newest ones).
    """
    rows, beams = len(own), len(own) // images
    newest = torch.eye(beams, dtype=torch.bool, device=own.device).repeat(images, 1)
    own = torch.cat([own, newest], dim=1)
    image = own.new_ones(rows, image_len)
    word, mask = (torch.cat([image, own, last], dim=1) for last in (newest & False, newest))
    rule = rearrange([word, mask], "two (B beams) keys -> B 1 (two beams) keys", beams=beams)
    return rule, own


def hide_words(
    text: Tensor,
    text_real: Tensor,
    ratio: float,
    vocab: int,
    generator: torch.Generator,
    mask_id: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Captions with words hidden for `ImageCaptioner.loss`: what is shown, and where it hid.

    text: int64 (B, T), a caption's words first, padding last. text_real: bool (B, T), True = a
    real word, <s> and </s> included. Of n real ones, ratio * n are hidden, at least 1 and at most
    n - 1: never <s>, but </s> too, so that the model learns to stop. In their place stands <mask>
    (80%), the word itself (10%) or any id from 3 up to vocab (10%). mask_id: None = vocab - 1.
    Returns shown int64 (B, T) and hidden bool (B, T). (Released code: captioning data.)
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio {ratio} is not in 0 < ratio <= 1")
    if text_real.dtype != torch.bool or text_real.shape != text.shape:
        raise ValueError(
            f"text_real is {text_real.dtype} {tuple(text_real.shape)}, not bool "
            f"{tuple(text.shape)} (True = a real word)"
        )
    may = text_real & (text_real.cumsum(dim=1) > 1)
    real = text_real.sum(dim=1)
    count = (real * ratio + 0.5).long().clamp(min=1).minimum(real - 1)

    def uniform() -> Tensor:
        return torch.rand(text.shape, generator=generator).to(text.device)

    rank = uniform().masked_fill(~may, 2).argsort(dim=1).argsort(dim=1)
    hidden = rank < count[:, None]
    random_ids = torch.randint(3, vocab, text.shape, generator=generator).to(text.device)
    kind = uniform()
    other = torch.where(kind < 0.9, text, random_ids)
    shown = other.masked_fill(kind < 0.8, vocab - 1 if mask_id is None else mask_id)
    return torch.where(hidden, shown, text), hidden
