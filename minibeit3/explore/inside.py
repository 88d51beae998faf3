"""A model's attention for one picture and one text, and what each of its tokens depends on."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minibeit3.backbones import Backbone
from minibeit3.capture import capture
from minibeit3.embed import Streams
from minibeit3.explore.core import Floats
from minibeit3.explore.flow import relevance, rollout
from minibeit3.objective import MaskedDataModel

Explained = Callable[[Streams, int], Tensor]


def feature(x: Streams, token: int) -> Tensor:
    """The final feature (D,) of a token of one pair, image tokens first."""
    assert x.image is not None and x.text is not None
    return torch.cat([x.image, x.text], dim=1)[0, token]


def own_direction(x: Streams, token: int) -> Tensor:
    """How far a token's feature goes its own way, away from the mean of all tokens."""
    assert x.image is not None and x.text is not None
    mean = torch.cat([x.image, x.text], dim=1)[0].mean(dim=0)
    mine = feature(x, token)
    return mine @ (mine - mean).detach()


def best_guess(model: MaskedDataModel) -> Explained:
    """The largest logit at a token: of the words' head for a word, else of the codes' head."""

    def explained(x: Streams, token: int) -> Tensor:
        assert x.image is not None
        word = token >= x.image.shape[1]
        return (model.mlm_head if word else model.mim_head)(feature(x, token)).max()

    return explained


class Inside:
    """Attention (L, H, S, S) of a pair, and by request rollout and relevance."""

    def __init__(
        self,
        model: Backbone | MaskedDataModel,
        image: Tensor,
        text: Tensor,
        explained: Explained | None = None,
    ) -> None:
        """image: float (1, C, H, W), text: int64 (1, T). explained: the number whose causes
        relevance shows; None = `best_guess` of a pretrained model, else `own_direction`."""
        pretrained = isinstance(model, MaskedDataModel)
        backbone = model.backbone if pretrained else model
        self.explained = explained or (best_guess(model) if pretrained else own_direction)
        backbone.eval()
        source = image.detach().clone().requires_grad_()  # so that frozen weights have a graph too
        with torch.enable_grad(), capture(backbone, "blocks.*.attn:pattern", gradients=True) as got:
            self.features = backbone(source, text)
        self._weights = [p for p in got.values() if isinstance(p, Tensor)]
        self.patterns: Floats = torch.cat(self._weights).detach().numpy()

    def rollout(self, layer: int) -> Floats:
        """(S, S) through the first `layer` layers."""
        return rollout(self.patterns[:layer])

    def relevance(self, token: int) -> Floats:
        """What the explained number at `token` owes to every token, (S,), sums to 1 or is 0."""
        target = self.explained(self.features, token)
        found = torch.autograd.grad(target, self._weights, retain_graph=True)
        row = relevance(self.patterns, torch.cat(found).numpy())[token]
        return row / max(float(row.sum()), 1e-12) if np.isfinite(row).all() else row * 0
