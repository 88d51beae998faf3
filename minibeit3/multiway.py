"""Experts, and the dispatch of streams to them (paper, section 2.1: Multiway Transformer)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.checks import check_spans
from minibeit3.config import BEiT3Config
from minibeit3.embed import Streams
from minibeit3.routing import Expert, LayerRoute, Spans


class FeedForward(nn.Module):
    """One expert: norm, D to F, GELU, F to D. Each expert owns the norm before it (as VLMo)."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) to the same shape."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Multiway(nn.Module):
    """A set of experts of which every token meets one: the one that the route names."""

    def __init__(self, experts: dict[Expert, nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({str(name): expert for name, expert in experts.items()})

    def dispatch(self, x: Tensor, where: Expert | Spans) -> Tensor:
        """One expert for all tokens of x (B, tokens, D), or one for each span that tiles them."""
        spans = where if isinstance(where, tuple) else ((where, x.shape[1]),)
        lengths = [length for _, length in spans]
        check_spans(lengths, x.shape[1], [name for name, _ in spans], list(self.experts))
        if len(spans) == 1:
            return self.experts[spans[0][0]](x)
        parts = zip(spans, x.split(lengths, dim=1), strict=True)
        return torch.cat([self.experts[name](part) for (name, _), part in parts], dim=1)

    def rows(self, x: Tensor, cut: int, first: Expert | Spans, second: Expert | Spans) -> Tensor:
        """The first `cut` samples by one route, the others by another: one matmul if it is one."""
        if first == second or cut in (0, len(x)):
            return self.dispatch(x, first if cut else second)
        return torch.cat([self.dispatch(x[:cut], first), self.dispatch(x[cut:], second)])

    def forward(self, x: Streams, route: LayerRoute) -> Streams:
        """Both streams, any shape (B, tokens, D), to the same shapes."""
        (image, text), (alone, paired, pairs) = x, route
        if image is not None:
            image = self.rows(image, len(image) - pairs, alone.image, paired.image)
        if text is not None:
            text = self.rows(text, pairs, paired.text, alone.text)
        return Streams(image, text)
