"""The last block where the loss looks, and nowhere else: exact, and half of the block saved.

Masked data modelling reads features of hidden tokens. In the last block these need keys and values
of all tokens, but nobody reads what it makes of the visible ones: their output and their expert
are left out. The formula beside it is `backbone.encode(...)[hidden]`.

Letters: B samples, I image and T text tokens, S = I + T, D width, H heads of width K, n hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from minibeit3.attention import SharedAttention, attention_pattern
from minibeit3.backbones import Backbone
from minibeit3.checks import check_pairs
from minibeit3.embed import Streams
from minibeit3.init import Scales, stochastic_depth
from minibeit3.model import BEiT3
from minibeit3.released import MODALITIES, ReleasedBEiT3
from minibeit3.routing import LayerRoute, Route, route_layer
from minibeit3.visibility import Visibility, see


def hidden_features(
    backbone: Backbone,
    x: Streams,
    hidden_patches: Tensor | None,
    hidden_words: Tensor | None,
    text_real: Tensor | None,
    pairs: int,
    generator: torch.Generator | None,
) -> Streams:
    """Features of the hidden places after all blocks, image and text (n, D), sample by sample.

    hidden_patches: bool (B, N), hidden_words: bool (B, T), True = hidden; a stream whose mask is
    None gives None. The other arguments are those of `encode`.
    """
    given = None if hidden_patches is None else F.pad(hidden_patches, (1, 0)), hidden_words
    hidden = Streams(
        *(
            at if s is None or at is not None else s.new_zeros(s.shape[:2], dtype=torch.bool)
            for s, at in zip(x, given, strict=True)
        )
    )
    if prunable(backbone):
        x = encode_hidden(backbone, x, hidden, text_real, pairs, generator)
    else:
        x = backbone.encode(x, text_real, pairs=pairs, generator=generator)
        x = Streams(*(s if s is None else s[at] for s, at in zip(x, hidden, strict=True)))
    return Streams(*(None if at is None else s for s, at in zip(x, given, strict=True)))


def prunable(backbone: Backbone) -> bool:
    """True where nobody can see the difference: in training, and with no hook in the last block.

    Hooks are `capture`'s, or FSDP's on a block of its own. Compiled code wants fixed shapes.
    """
    last = backbone.blocks[-1]
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in last.modules())
    return backbone.training and not hooked and not torch.compiler.is_compiling()


def encode_hidden(
    backbone: Backbone,
    x: Streams,
    hidden: Streams,
    text_real: Tensor | None = None,
    pairs: int | None = None,
    generator: torch.Generator | None = None,
) -> Streams:
    """The rows of `backbone.encode` at hidden places: image and text (n, D), sample by sample.

    hidden: bool, image (B, I) with [CLS], text (B, T); True = hidden; one for each stream of x.
    The other arguments are those of `encode`.
    """
    c, rate = backbone.config, backbone.config.drop_path if backbone.training else 0.0
    together = check_pairs(x.image, x.text, pairs)
    seen = see(x, together, text_real, None)
    if isinstance(backbone, ReleasedBEiT3) and x.text is not None and text_real is not None:
        x = Streams(x.image, x.text * text_real[..., None])
    scales = stochastic_depth(rate, c.depth, x, together, generator)
    for i, block in enumerate(backbone.blocks):
        route = LayerRoute(route_layer(c, i, False), route_layer(c, i, True), together)
        if i < c.depth - 1:
            x = block(x, route, seen, scales[i], None)
        else:
            x = hidden_block(block, x, hidden, route, seen, scales[i])
    if isinstance(backbone, BEiT3):
        x = Streams(*(s if s is None else backbone.norm(s) for s in x))
    elif backbone.norm is not None:
        x = backbone.norm(x, LayerRoute(Route(*MODALITIES), Route(*MODALITIES), 0))
    return Streams(*(s if s is None else rearrange(s, "n 1 D -> n D") for s in x))


def hidden_block(
    block: Any,
    x: Streams,
    hidden: Streams,
    route: LayerRoute,
    seen: Visibility,
    scale: Scales,
) -> Streams:
    """`block(x, ...)` at hidden places, each a sample of one token: image and text (n, 1, D)."""
    attn, ffn = block.attn, block.ffn
    own = () if isinstance(attn, SharedAttention) else (route,)  # one set of weights needs none
    mixed = hidden_attention(attn.project(x, *own), hidden, seen, attn.heads)
    x = pick(x, hidden)
    first, second = (None if s is None else pick(s, hidden) for s in scale)
    x = x.plus(attn.finish(mixed, *own), first)
    image, text = hidden
    in_pairs = (
        0 if image is None else int(image[len(image) - seen.pairs :].sum()),
        0 if text is None else int(text[: seen.pairs].sum()),
    )
    routes = (route._replace(pairs=count) for count in in_pairs)  # a stream's own share of pairs
    image = ffn(Streams(x.image, None), next(routes)).image
    text = ffn(Streams(None, x.text), next(routes)).text
    return x.plus(Streams(image, text), second)


def pick(x: Streams, hidden: Streams) -> Streams:
    """The hidden tokens of both streams, or of what samples share (B, 1, D): (n, 1, D)."""

    def rows(s: Tensor | None, at: Tensor | None) -> Tensor | None:
        return None if s is None or at is None else s.expand(*at.shape, -1)[at][:, None]

    return Streams(*map(rows, x, hidden))


def hidden_attention(qkv: Streams, hidden: Streams, seen: Visibility, heads: int) -> Streams:
    """`joint_attention(qkv, seen, heads)` at hidden places: 3 D in, (n, 1, D) out."""
    (image, text), pairs = qkv, seen.pairs
    images = 0 if image is None else len(image) - pairs
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    if image is not None and hidden.image is not None and images:
        parts[0].append(attend_from(image[:images], hidden.image[:images], seen.image, heads))
    if pairs:
        assert image is not None and text is not None
        assert hidden.image is not None and hidden.text is not None
        at = torch.cat([hidden.image[images:], hidden.text[:pairs]], dim=1)  # (pairs, S)
        pair = torch.cat([image[images:], text[:pairs]], dim=1)
        mixed = attend_from(pair, at, seen.pair, heads)
        is_image = at.nonzero()[:, 1] < image.shape[1]
        parts[0].append(mixed[is_image])
        parts[1].append(mixed[~is_image])
    if text is not None and hidden.text is not None and pairs < len(text):
        parts[1].append(attend_from(text[pairs:], hidden.text[pairs:], seen.text, heads))
    return Streams(*(torch.cat(s)[:, None] if s else None for s in parts))


def attend_from(x: Tensor, hidden: Tensor, visible: Tensor | None, heads: int) -> Tensor:
    """`attend(x, visible, heads)[hidden]` of x = [q k v] (B, S, 3 D): (n, D).

    Samples hide different numbers of tokens: shorter rows of queries are filled up with tokens
    whose answer is thrown away.
    """
    counts = hidden.sum(dim=1)
    at = hidden.byte().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    q, k, v = x.chunk(3, dim=-1)
    q = q.gather(1, repeat(at, "B m -> B m D", D=q.shape[-1]))
    q, k, v = (rearrange(s, "B S (H K) -> B H S K", H=heads) for s in (q, k, v))
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # as in `attend`
        mixed = attention_pattern(q, k, visible).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    real = torch.arange(at.shape[1], device=at.device) < counts[:, None]
    return rearrange(mixed, "B H m K -> B m (H K)")[real]
