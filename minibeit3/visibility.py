"""Who may attend to whom: padding and the caption rule. S = I + T tokens; True = may attend."""

from typing import NamedTuple

import torch
from torch import Tensor

from minibeit3.checks import check_text_real
from minibeit3.embed import Streams


class Visibility(NamedTuple):
    """One mask per kind of sample, broadcastable to (B, H, S, S); None = everything is visible."""

    pairs: int
    image: Tensor | None
    pair: Tensor | None
    text: Tensor | None


def caption_rule(image_len: int, text_len: int, device: torch.device | None = None) -> Tensor:
    """Captioning, bool (S, S): images see images; a word sees the image, its past and itself."""
    size = image_len + text_len
    rule = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    rule[:image_len, :image_len] = True
    return rule


def real_keys(text_real: Tensor, image_len: int) -> Tensor:
    """Padding as a mask (B, 1, 1, I + T): every query may see the image and the real words."""
    image = text_real.new_ones(len(text_real), image_len)
    keys = torch.cat([image, text_real], dim=1)
    first = torch.arange(keys.shape[1], device=keys.device) == 0
    keys = keys | (first & ~keys.any(dim=1, keepdim=True))  # only padding: no softmax over nothing
    return keys[:, None, None, :]


def see(x: Streams, pairs: int, text_real: Tensor | None, visible: Tensor | None) -> Visibility:
    """The masks of a batch. text_real: bool (B, T), True = a real word; None = all are.

    visible: bool, broadcastable to (B, H, queries, keys), an own rule for a batch of one kind.
    """
    image_len, pair, text = 0 if x.image is None else x.image.shape[1], None, None
    if text_real is not None:
        check_text_real(text_real, x.text)
        pair = real_keys(text_real[:pairs], image_len) if pairs else None
        text = real_keys(text_real[pairs:], 0) if pairs < len(text_real) else None
    if visible is None:
        return Visibility(pairs, None, pair, text)
    streams = [s for s in x if s is not None]
    if len(streams) == 2 and any(len(s) != pairs for s in streams):
        raise ValueError("an own `visible` rule needs a batch of images, of texts or of pairs")
    pair, text = (visible if mask is None else visible & mask for mask in (pair, text))
    return Visibility(pairs, visible, pair, text)
