"""AttentionExplorer: what each patch and word attends to, in picture and text at once."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
from torch import Tensor

from minibeit3.backbones import Backbone
from minibeit3.data.images import to_model
from minibeit3.explore.core import (
    Bools,
    Drawn,
    Floats,
    Picture,
    attention_picture,
    attention_rows,
    beside,
    palette,
    scaled,
    token_name,
)
from minibeit3.explore.flow import SHARES, packed, region_of, region_sentence, shares
from minibeit3.explore.inside import Explained, Inside
from minibeit3.explore.live import open_live
from minibeit3.explore.own import Given, Own, opened, squared
from minibeit3.explore.page import Answer, data_url, live_page
from minibeit3.explore.state import METHODS, AttentionState, attention_limits
from minibeit3.explore.widgets import Shell, Twin
from minibeit3.objective import MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer

SIDE = 320  # pixels of an own picture on the screen
FEW = 200  # tokens: up to here an exported page holds the relevance of every one


class AttentionExplorer:
    """Hover or focus a patch or a word: its attention over photograph and caption on one scale.

    Layers, heads, their mean, rollout and relevance; with a second model both side by side. Where
    anywidget does not load, the same through plain controls.
    """

    def __init__(
        self,
        backbone: Backbone | MaskedDataModel,
        picture: Picture,
        image: Tensor,
        text: Tensor,
        words: Sequence[str],
        query: int | None = None,
        *,
        other: Backbone | MaskedDataModel | None = None,
        names: tuple[str, str] = ("before", "after"),
        regions: Mapping[str, Bools] | None = None,
        tokenizer: TextTokenizer | None = None,
        explained: Explained | None = None,
    ) -> None:
        """picture: uint8 (H, W, 3), square, for display. image: float (1, C, H, W), text: int64
        (1, T), what the model sees. words: one per text token. query: the token shown first,
        None = the first after <s>. other: a second model of the same sizes; `names` of both.
        regions: name -> bool (H, W), known places to score against. tokenizer: allows own text.
        explained: see `Inside`. Raises ValueError when sizes do not belong together."""
        self.models = [backbone] if other is None else [backbone, other]
        self.names = list(names) if other is not None else ["model"]
        self.tokenizer, self.explained = tokenizer, explained
        found = [_backbone(model).config for model in self.models]
        sizes = {(c.grid, c.depth, c.heads) for c in found}
        if len(sizes) > 1:
            raise ValueError(f"models of (grid, depth, heads) {sorted(sizes)}: compare like sizes")
        self.config = found[0]
        self.own = Own(self.use, text="caption" if tokenizer else None)
        self.view = W.VBox()
        self._open(picture, image, text, words, query, regions or {})

    def use(self, image: Given | None = None, text: str | None = None) -> None:
        """Look at one's own picture (a path, a file's bytes, uint8 (3, H, W)) or caption.

        What is not given stays. Raises ValueError for a picture that cannot be read, and for text
        without a tokenizer.
        """
        pixels, c = opened(image), self.config
        picture, seen, ids, words = self.picture, self.image, self.text, self.words
        if pixels is not None:
            picture, seen = squared(pixels, SIDE), to_model(pixels[None], c.image_size)
        if text is not None:
            if self.tokenizer is None:
                raise ValueError("own text needs AttentionExplorer(..., tokenizer=...)")
            ids = self.tokenizer.batch([text], c.max_text_length)[0]
            words = [self.tokenizer.piece(i).lstrip("▁") or "▁" for i in ids[0].tolist()]
        self._open(picture, seen, ids, words, None, {})

    def _open(
        self,
        picture: Picture,
        image: Tensor,
        text: Tensor,
        words: Sequence[str],
        query: int | None,
        regions: Mapping[str, Bools],
    ) -> None:
        c, tokens = self.config, self.config.image_tokens + text.shape[1]
        if len(words) != text.shape[1]:
            raise ValueError(f"{len(words)} words for {text.shape[1]} text tokens: one for each")
        inside = [Inside(model, image, text, self.explained) for model in self.models]
        self.inside, self.picture, self.image, self.text = inside, picture, image, text
        self.words = list(words)
        self.regions = [region_of(name, place, c.grid) for name, place in regions.items()]
        first = min(c.image_tokens + 1, tokens - 1) if query is None else query
        options = [(token_name(i, c.grid, words), i) for i in range(tokens)]
        heads = [("mean", -1), *((str(i + 1), i) for i in range(c.heads))]
        places = [("nothing", -1), *((r.name, i) for i, r in enumerate(self.regions))]
        self.token = W.Dropdown(options=options, value=first, description="token")
        self.layer = W.IntSlider(value=c.depth, min=1, max=c.depth, description="layer")
        self.head = W.Dropdown(options=heads, description="head")
        self.method = W.Dropdown(options=METHODS, description="show")
        self.region = W.Dropdown(options=places, description="score on")
        controls = [self.token, self.method, self.layer, self.head]
        controls += [self.region] * bool(self.regions)
        self.twin = Twin(
            AttentionState(layer=c.depth, query=first),
            attention_limits(c.depth, c.heads, tokens, len(self.regions)),
            controls,
            self._read,
            self._write,
            lambda: self.shell.refresh(),
        )
        self.shell = Shell("AttentionExplorer", controls, self.draw, watch=False)
        view = self.twin.view()
        self.live = open_live("attention", self.spec(), view, self.answer, self.twin.tell)
        self.twin.live = self.live
        self.view.children = (self.live or self.shell.view, self.own.view)

    def _read(self) -> dict[str, Any]:
        named = {"query": self.token, "layer": self.layer, "head": self.head}
        named |= {"method": self.method, "region": self.region}
        return {name: control.value for name, control in named.items()}

    def _write(self, state: AttentionState) -> None:
        self.token.value, self.layer.value = state.query, state.layer
        self.head.value, self.method.value, self.region.value = (
            state.head,
            state.method,
            state.region,
        )

    def spec(self) -> dict[str, Any]:
        """What the browser's module is given once."""
        c = self.config
        given = {"grid": c.grid, "words": self.words, "depth": c.depth, "heads": c.heads}
        between = [shares(one.patterns, c.image_tokens).round(4).tolist() for one in self.inside]
        return given | {
            "models": self.names,
            "methods": list(METHODS),
            "picture": data_url(scaled(self.picture, SIDE)),
            "palette": palette(),
            "kinds": list(SHARES),
            "shares": between,
            "regions": [{"name": r.name, "cover": r.cover.round(3).tolist()} for r in self.regions],
        }

    def answer(self, key: str) -> Answer:
        """The weights that the browser asks for: "attention|layer", "rollout|layer" (1 is the
        first) or "relevance|token", packed, one model after the other."""
        method, _, number = key.partition("|")
        bound = {"attention": self.config.depth, "rollout": self.config.depth}
        bound |= {"relevance": self.inside[0].patterns.shape[-1] - 1}
        if method not in bound or not number.isdecimal() or int(number) > bound[method]:
            raise ValueError(f"{key!r} is no question: ask attention, rollout or relevance|number")
        at = int(number)
        return {}, b"".join(packed(_weights(one, method, at)) for one in self.inside)

    def draw(self) -> Drawn:
        """The picture of the present state, and its sentence."""
        state = self.twin.state
        head = state.head if state.method == "attention" and state.head >= 0 else None
        drawn = []
        for name, one in zip(self.names, self.inside, strict=True):
            at = state.query if state.method == "relevance" else state.layer
            weights = _weights(one, state.method, at)
            if state.method == "relevance":
                weights = np.repeat(weights[None], state.query + 1, axis=0)
            pattern = weights if weights.ndim == 3 else weights[None]
            grid, query = self.config.grid, state.query
            shown = attention_picture(self.picture, pattern, self.words, query, head, grid)
            patches = attention_rows(pattern, head, query, grid)[1]
            said = shown.alt + region_sentence(patches, self.regions, state.region)
            if state.method == "relevance":
                said = said.replace(" attends ", " owes ", 1)
            title = f"{name}: " if len(self.names) > 1 else ""
            drawn.append(Drawn(shown.picture, title + said))
        return beside(drawn)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)

    def export_html(self, path: str | PathLike[str]) -> None:
        """One page with every layer's attention and rollout, for readers without a kernel.

        It holds the relevance of every token up to 200 tokens, else that of the present one.
        """
        state, depth = self.twin.state, self.config.depth
        tokens = self.inside[0].patterns.shape[-1]
        asked = range(tokens) if tokens <= FEW else [state.query]
        keys = [f"{m}|{layer}" for m in METHODS[:2] for layer in range(1, depth + 1)]
        keys += [f"relevance|{token}" for token in asked]
        answers = {key: self.answer(key) for key in keys}
        page = live_page("attention", repr(self), self.spec(), self.twin.view(), answers)
        Path(path).write_text(page, encoding="utf-8")


def _backbone(model: Backbone | MaskedDataModel) -> Backbone:
    return model.backbone if isinstance(model, MaskedDataModel) else model


def _weights(inside: Inside, method: str, at: int) -> Floats:
    """(H, S, S) of a layer, (S, S) of rollout up to it, (S,) of a token's relevance."""
    if method == "relevance":
        return inside.relevance(at)
    if at < 1:
        raise ValueError(f"layer {at}: the first is 1")
    return inside.rollout(at) if method == "rollout" else inside.patterns[at - 1]
