"""The paper's BEiT-3: shared attention, modality experts, vision-language experts on top."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minibeit3.attention import SharedAttention
from minibeit3.cache import Cache
from minibeit3.checks import check_pairs, check_routes
from minibeit3.config import BEiT3Config
from minibeit3.embed import ImageEmbedding, Streams, TextEmbedding
from minibeit3.init import Scales, initialise, stochastic_depth
from minibeit3.multiway import FeedForward, Multiway
from minibeit3.routing import Expert, LayerRoute, Route, routes_for
from minibeit3.visibility import Visibility, see


class Block(nn.Module):
    """One layer: every token attends with shared weights, then meets its expert."""

    def __init__(self, config: BEiT3Config, layer: int) -> None:
        super().__init__()
        experts = list(Expert) if layer >= config.depth - config.fusion_layers else list(Expert)[:2]
        self.attn = SharedAttention(config)
        self.ffn = Multiway({expert: FeedForward(config) for expert in experts})

    def forward(
        self, x: Streams, route: LayerRoute, seen: Visibility, scale: Scales, cache: Cache
    ) -> Streams:
        """Two residual sums; scale: the factors of stochastic depth."""
        x = x.plus(self.attn(x, seen, cache), scale[0])
        return x.plus(self.ffn(x, route), scale[1])


class BEiT3(nn.Module):
    """Multiway Transformer of the paper (section 2.1)."""

    def __init__(self, config: BEiT3Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.image_embed = ImageEmbedding(config)
        self.text_embed = TextEmbedding(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.width) if config.final_norm else nn.Identity()
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
        """All blocks and the final norm; cache: earlier tokens, one per layer, the new ones join.

        generator: of stochastic depth, in training. recompute: True = trade time for memory.
        """
        c, rate = self.config, self.config.drop_path if self.training else 0.0
        together = check_pairs(x.image, x.text, pairs)
        seen = see(x, together, text_real, visible)
        alone, paired = (routes or routes_for(c, kind) for kind in (False, True))
        check_routes(len(alone), c.depth)
        scales = stochastic_depth(rate, c.depth, x, together, generator)
        for i, block in enumerate(self.blocks):
            route = LayerRoute(alone[i], paired[i], together)
            call = (x, route, seen, scales[i], cache[i] if cache else None)
            x = checkpoint(block, *call, use_reentrant=False) if recompute else block(*call)
        return Streams(*(None if s is None else self.norm(s) for s in x))

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
        """Final features of both streams; a stream that was not given is None.

        image: float (B, C, H, W). text: int64 (B, T). text_real: bool (B, T), True = a real token
        (None: all). hidden_patches: bool (B, N), True = replaced by the mask vector. visible:
        bool, broadcastable to (B, H, S, S), True = may attend. pairs: None if image and text of a
        row belong together, else see `Streams`. routes: one per layer, in place of the config's.
        """
        x = self.embed(image, text, hidden_patches)
        return self.encode(x, text_real, visible, pairs, routes)
