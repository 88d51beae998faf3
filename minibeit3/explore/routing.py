"""RoutingExplorer: which token meets which expert, and what changes when one goes astray."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import ipywidgets as W
from torch import Tensor

from minibeit3.backbones import Backbone, preset
from minibeit3.config import PRESETS, BEiT3Config
from minibeit3.data.images import to_model
from minibeit3.explore.core import Drawn
from minibeit3.explore.own import Given, Own, opened
from minibeit3.explore.routes import (
    STRAYS,
    USES,
    Use,
    distances,
    routes_picture,
    stray_routes,
)
from minibeit3.explore.widgets import Shell
from minibeit3.routing import Route
from minibeit3.text_tokenizer import TextTokenizer


class RoutingExplorer:
    """Experts by layer and token for five uses, two variants and all presets; a what-if switch."""

    def __init__(
        self,
        backbones: Sequence[Backbone],
        image: Tensor,
        text: Tensor,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        """backbones: models to measure what-if distances with; other sizes show routes only.

        image: float (1, C, H, W), text: int64 (1, T), what those models see. tokenizer: allows own
        text.
        """
        self.backbones, self.image, self.text = backbones, image, text
        self.tokenizer = tokenizer
        self.use = W.Dropdown(options=list(USES), value="fusion encoder", description="use")
        self.released = W.Checkbox(description="released variant", indent=False)
        self.size = W.Dropdown(options=list(PRESETS), value="tiny", description="preset")
        self.stray = W.Dropdown(options=list(STRAYS), description="through L")
        controls = [self.use, self.released, self.size, self.stray]
        for control in controls:
            control.layout.width = "auto"
        self.shell = Shell("RoutingExplorer", controls, self.draw)
        own = Own(self.take, text="text" if tokenizer else None)
        self.view = W.VBox([self.shell.view, own.view])

    def take(self, image: Given | None = None, text: str | None = None) -> None:
        """Route one's own picture (a path, a file's bytes, uint8 (3, H, W)) or text.

        Raises ValueError for a picture that cannot be read, and for text without a tokenizer.
        """
        pixels = opened(image)
        if pixels is not None:
            self.image = to_model(pixels[None], self.image.shape[-1])
        if text is not None:
            if self.tokenizer is None:
                raise ValueError("own text needs RoutingExplorer(..., tokenizer=...)")
            longest = min((b.config.max_text_length for b in self.backbones), default=64)
            self.text = self.tokenizer.batch([text], longest)[0]
        self.shell.refresh()

    def chosen(self) -> tuple[BEiT3Config, Use, tuple[Route, ...]]:
        """The model, the use and the routes that the controls name."""
        config = preset(str(self.size.value), "released" if self.released.value else "paper")
        use = USES[str(self.use.value)]
        return config, use, stray_routes(config, use, str(self.stray.value))

    def moves(self) -> list[tuple[float, float]] | None:
        """`distances` from the usual routes, layer by layer; None without a model of this size."""
        config, use, routes = self.chosen()
        model = next((b for b in self.backbones if b.config == config), None)
        return None if model is None else distances(model, use, self.image, self.text, routes)

    def draw(self) -> Drawn:
        """The picture of the present settings, and its sentence."""
        config, use, routes = self.chosen()
        drawn = routes_picture(config, use, routes, self.text.shape[1], self.moves())
        name = f"{config.variant} {self.size.value} as {self.use.value}"
        return Drawn(drawn.picture, f"{name}: {drawn.alt}")

    def __repr__(self) -> str:
        return self.shell.sentence()

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page for readers without a kernel (see `Shell.export_html`)."""
        self.shell.export_html(path, most)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)
