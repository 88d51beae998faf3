"""Thin shells: sliders, and one picture that `core` draws. No Output widget, no matplotlib."""

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as W
import numpy as np
import torch
from torch import Tensor

from minibeit3.backbones import Backbone
from minibeit3.capture import capture
from minibeit3.explore.core import Drawn, Picture, attention_picture, token_name


class Shell:
    """Controls above a picture; a saved notebook keeps the picture and its alt sentence."""

    def __init__(self, name: str, controls: Sequence[W.Widget], draw: Callable[[], Drawn]) -> None:
        self.name, self.draw, self.drawn = name, draw, draw()
        self.image = W.Image(value=self.drawn.png(), format="png")
        self.status = W.Label(value=self.drawn.alt)
        for control in controls:
            control.observe(self.refresh, names="value")
        row = W.HBox(list(controls), layout=W.Layout(flex_flow="row wrap"))
        self.view = W.VBox([row, self.image, self.status])

    def refresh(self, _: object = None) -> None:
        """Draw what the controls say now."""
        self.drawn = self.draw()
        self.image.value, self.status.value = self.drawn.png(), self.drawn.alt

    def sentence(self) -> str:
        """The explorer as plain text: its name and what it shows."""
        return f"{self.name}: {self.drawn.alt}"

    def figure_html(self) -> str:
        """The picture as an HTML figure with alt text, for readers without a kernel."""
        alt = html.escape(self.drawn.alt, quote=True)
        data = base64.b64encode(self.drawn.png()).decode()
        return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'

    def bundle(self) -> dict[str, Any]:
        """Live view, PNG, figure with alt text, sentence: whichever the reader can show."""
        live: Any = self.view._repr_mimebundle_() or {}
        return dict(live) | {
            "text/plain": self.sentence(),
            "text/html": self.figure_html(),
            "image/png": base64.b64encode(self.drawn.png()).decode(),
        }


class AttentionExplorer:
    """What each patch and word attends to, over photograph and caption on one scale."""

    def __init__(
        self,
        backbone: Backbone,
        picture: Picture,
        image: Tensor,
        text: Tensor,
        words: Sequence[str],
        query: int | None = None,
    ) -> None:
        """picture: uint8 (H, W, 3), square, for display. image: float (1, C, H, W), text: int64
        (1, T), what the model sees. words: one per text token. query: the token shown first,
        None = the first after <s>."""
        with torch.no_grad(), capture(backbone.eval(), "blocks.*.attn:pattern") as seen:
            backbone(image, text)
        layers = [np.asarray(p[0]) for p in seen.values() if isinstance(p, Tensor)]
        c = backbone.config
        names = [(token_name(i, c.grid, words), i) for i in range(c.image_tokens + text.shape[1])]
        heads = [("mean", -1), *((str(i + 1), i) for i in range(c.heads))]
        first = c.image_tokens + 1 if query is None else query
        self.token = W.Dropdown(options=names, value=first, description="token")
        self.layer = W.IntSlider(value=c.depth, min=1, max=c.depth, description="layer")
        self.head = W.Dropdown(options=heads, description="head")

        def draw() -> Drawn:
            pattern, token, head = layers[self.layer.value - 1], self.token.value, self.head.value
            assert isinstance(token, int) and isinstance(head, int)
            chosen = None if head < 0 else head
            return attention_picture(picture, pattern, words, token, chosen, c.grid)

        self.shell = Shell("AttentionExplorer", [self.token, self.layer, self.head], draw)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle()
