"""What a mask hides of a picture and its caption, and how far the copyable neighbours are."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as W
import torch
from torch import Tensor

from minibeit3.explore.core import Drawn, Picture, masked_picture
from minibeit3.explore.hiding import caption_picture, distance_picture, stacked
from minibeit3.explore.widgets import Shell
from minibeit3.masking import blockwise_mask, random_mask


class MaskExplorer:
    """Block-wise and random masks over a photograph by ratio, block, aspect and seed.

    Words of the caption hide and come back by their buttons.
    """

    def __init__(
        self, picture: Picture, grid: int = 8, ratio: float = 0.4, words: Sequence[str] = ()
    ) -> None:
        """picture: uint8 (H, W, 3), square. words: of its caption; without them no buttons."""
        self.picture, self.grid = picture, grid
        self.kind = W.ToggleButtons(options=["block-wise", "random"])
        self.show = W.ToggleButtons(options=["cover", "distance"])
        self.ratio = W.FloatSlider(value=ratio, min=0, max=0.9, step=0.05, description="ratio")
        cells = grid * grid
        block = max(1, round(16 * cells / 196))  # what `blockwise_mask` asks for by itself
        most = max(block, cells // 2)
        self.block = W.IntSlider(value=block, min=1, max=most, description="min block")
        self.aspect = W.FloatSlider(value=0.3, min=0.1, max=1, step=0.05, description="aspect")
        self.seed = W.IntSlider(value=0, min=0, max=20, description="seed")
        self.words = [W.ToggleButton(description=word) for word in words]
        for button in self.words:
            button.layout.width = "auto"
        controls = [self.kind, self.show, self.ratio, self.block, self.aspect, self.seed]
        self.shell = Shell("MaskExplorer", [*controls, *self.words], self.draw)

    def hidden(self) -> Tensor:
        """The mask of the present settings, bool (grid, grid), True = hidden."""
        generator = torch.Generator().manual_seed(self.seed.value)
        count = round(self.ratio.value * self.grid**2)
        if self.kind.value == "random":
            return random_mask(self.grid, count, generator)
        low = self.aspect.value
        return blockwise_mask(self.grid, count, generator, self.block.value, (low, 1 / low))

    def draw(self) -> Drawn:
        """The picture of the present settings, and its sentence."""
        paint = distance_picture if self.show.value == "distance" else masked_picture
        top = paint(self.picture, self.hidden().numpy())
        if not self.words:
            return top
        said = [button.description for button in self.words]
        return stacked(top, caption_picture(said, [bool(b.value) for b in self.words]))

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle()
