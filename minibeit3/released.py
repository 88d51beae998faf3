"""Microsoft's released BEiT-3: every weight twice, sub-LN, no vision-language expert.

The same interface as model.BEiT3. Against the paper: projections and norms of attention belong to
the modality too (only the softmax is joint), a norm stands before each matrix that writes to the
residual stream (Magneto), both position tables start with two rows that nothing reads, and padded
words are zero (FACTS 1.1; torchscale's BEiT3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minibeit3.attention import joint_attention
from minibeit3.cache import Cache
from minibeit3.checks import check_pairs, check_routes
from minibeit3.config import BEiT3Config
from minibeit3.embed import ImageEmbedding, Streams, TextEmbedding
from minibeit3.init import Scales, initialise, stochastic_depth
from minibeit3.multiway import Multiway
from minibeit3.routing import Expert, LayerRoute, Route, routes_for
from minibeit3.visibility import Visibility, see

MODALITIES = (Expert.V, Expert.L)
UNREAD_ROWS = 2


class AttentionIn(nn.Module):
    """One modality's norm, queries, keys and values: D in, 3 D out."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) to (B, tokens, 3 D)."""
        return self.qkv(self.norm(x))


class AttentionOut(nn.Module):
    """One modality's sub-LN and output matrix."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.inner_norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) to the same shape."""
        return self.out(self.inner_norm(x))


class DecoupledAttention(nn.Module):
    """Joint softmax over both modalities, everything else by modality."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.project_in = Multiway({expert: AttentionIn(config) for expert in MODALITIES})
        self.project_out = Multiway({expert: AttentionOut(config) for expert in MODALITIES})

    def project(self, x: Streams, route: LayerRoute) -> Streams:
        """Queries, keys and values side by side: D in, 3 D out."""
        return self.project_in(x, route)

    def finish(self, x: Streams, route: LayerRoute) -> Streams:
        """Sub-LN and the output matrix: D in, D out."""
        return self.project_out(x, route)

    def forward(self, x: Streams, route: LayerRoute, seen: Visibility, cache: Cache) -> Streams:
        """Both streams, D in and D out."""
        mixed = joint_attention(self.project(x, route), seen, self.heads, cache)
        return self.finish(mixed, route)


class SubLNFeedForward(nn.Module):
    """One modality's expert with a norm before its second matrix."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.inner_norm = nn.LayerNorm(config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) to the same shape."""
        return self.fc2(self.inner_norm(F.gelu(self.fc1(self.norm(x)))))


class DecoupledBlock(nn.Module):
    """One layer: every token attends and meets the expert, both with its modality's weights."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.attn = DecoupledAttention(config)
        self.ffn = Multiway({expert: SubLNFeedForward(config) for expert in MODALITIES})

    def forward(
        self, x: Streams, route: LayerRoute, seen: Visibility, scale: Scales, cache: Cache
    ) -> Streams:
        """Two residual sums; scale: the factors of stochastic depth."""
        x = x.plus(self.attn(x, route, seen, cache), scale[0])
        return x.plus(self.ffn(x, route), scale[1])


class ReleasedBEiT3(nn.Module):
    """The decoupled Multiway Transformer of the released checkpoints."""

    def __init__(self, config: BEiT3Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.image_embed = ImageEmbedding(config, UNREAD_ROWS)
        self.text_embed = TextEmbedding(config, UNREAD_ROWS)
        self.blocks = nn.ModuleList(DecoupledBlock(config) for _ in range(config.depth))
        norms = {expert: nn.LayerNorm(config.width) for expert in MODALITIES}
        self.norm = Multiway(norms) if config.final_norm else None  # pyright: ignore[reportArgumentType]
        initialise(self, config.depth, generator)

    def embed(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        hidden_patches: Tensor | None = None,
        text_start: int = 0,
    ) -> Streams:
        """Tokens before the first block; text_start: position of the first word given."""
        image = None if image is None else self.image_embed(image, hidden_patches)
        return Streams(image, None if text is None else self.text_embed(text, text_start))

    def encode(
        self,
        x: Streams,
        text_real: Tensor | None = None,
        visible: Tensor | None = None,
        pairs: int | None = None,
        routes: Sequence[Route] | None = None,
        cache: Sequence[Cache] | None = None,
        generator: torch.Generator | None = None,
        recompute: bool = False,
    ) -> Streams:
        """All blocks and the final norm; arguments as in model.BEiT3.encode."""
        c, rate = self.config, self.config.drop_path if self.training else 0.0
        together = check_pairs(x.image, x.text, pairs)
        seen = see(x, together, text_real, visible)
        if text_real is not None and x.text is not None:
            x = Streams(x.image, x.text * text_real[..., None])
        alone, paired = (routes or routes_for(c, kind) for kind in (False, True))
        check_routes(len(alone), c.depth)
        scales = stochastic_depth(rate, c.depth, x, together, generator)
        for i, block in enumerate(self.blocks):
            route = LayerRoute(alone[i], paired[i], together)
            call = (x, route, seen, scales[i], cache[i] if cache else None)
            x = checkpoint(block, *call, use_reentrant=False) if recompute else block(*call)
        modality = Route(*MODALITIES)
        return x if self.norm is None else self.norm(x, LayerRoute(modality, modality, together))

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        text_real: Tensor | None = None,
        hidden_patches: Tensor | None = None,
        visible: Tensor | None = None,
        pairs: int | None = None,
        routes: Sequence[Route] | None = None,
    ) -> Streams:
        """Final features of both streams; arguments as in model.BEiT3.forward."""
        x = self.embed(image, text, hidden_patches)
        return self.encode(x, text_real, visible, pairs, routes)
