"""Attention: the formula, the fast call, two streams as one. H heads of width K, S = I + T."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minibeit3.cache import Cache
from minibeit3.config import BEiT3Config
from minibeit3.embed import Streams
from minibeit3.visibility import Visibility


def attention_pattern(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)), (B, H, queries, keys), in float32; invisible keys weigh 0."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1)


def attend(x: Tensor, visible: Tensor | None, heads: int, cache: Cache = None) -> Tensor:
    """`attention_pattern(q, k, visible) @ v` of x = [q k v] (B, S, 3 D), to (B, S, D)."""
    q, k, v = rearrange(x, "B S (three H K) -> three B H S K", three=3, H=heads)
    if cache is not None:
        k, v = cache.extend(k, v)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # Here the fused backward is slow: two matmuls are 2 to 3.5 times faster.
        mixed = attention_pattern(q, k, visible).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return rearrange(mixed, "B H S K -> B S (H K)")


def joint_attention(qkv: Streams, seen: Visibility, heads: int, cache: Cache = None) -> Streams:
    """Each sample attends within itself, over both modalities if it is a pair: 3 D in, D out."""
    image, text, pairs = qkv.image, qkv.text, seen.pairs
    if image is None or text is None or pairs == 0:
        alone = (image, seen.image), (text, seen.text)
        return Streams(
            *(s if s is None else attend(s, visible, heads, cache) for s, visible in alone)
        )
    images, length = len(image) - pairs, image.shape[1]
    pair = torch.cat([image[images:], text[:pairs]], dim=1)  # (pairs, S, 3 D)
    pair = attend(pair, seen.pair, heads, cache)
    image_out, text_out = pair[:, :length], pair[:, length:]
    if images:
        image_out = torch.cat([attend(image[:images], seen.image, heads), image_out])
    if pairs < len(text):
        text_out = torch.cat([text_out, attend(text[pairs:], seen.text, heads)])
    return Streams(image_out, text_out)


class SharedAttention(nn.Module):
    """Self-attention with one set of weights for both modalities (paper, section 2.1)."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def project(self, x: Streams) -> Streams:
        """Queries, keys and values side by side: D in, 3 D out."""
        return Streams(*(None if s is None else self.qkv(self.norm(s)) for s in x))

    def finish(self, x: Streams) -> Streams:
        """The output matrix: D in, D out."""
        return Streams(*(None if s is None else self.out(s) for s in x))

    def forward(self, x: Streams, seen: Visibility, cache: Cache) -> Streams:
        """Both streams, D in and D out."""
        return self.finish(joint_attention(self.project(x), seen, self.heads, cache))
