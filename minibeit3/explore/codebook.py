"""CodebookExplorer: a picture as a sentence of codes, and what each word of it looks like."""

from os import PathLike
from typing import Any

import ipywidgets as W
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minibeit3.codebook import nearest
from minibeit3.explore.codes import code_picture
from minibeit3.explore.core import Drawn
from minibeit3.explore.own import Given, Own, opened, squared
from minibeit3.explore.widgets import Shell
from minibeit3.visual_tokenizer import VQKD


class CodebookExplorer:
    """The codes of a few pictures; choose a code, see the patches nearest to it and its use."""

    def __init__(self, model: VQKD, pictures: Tensor, code: int | None = None) -> None:
        """pictures: uint8 (n, 3, s, s), the size of the tokenizer. code: shown first, None = that
        of the first picture's middle patch. Raises ValueError for other pictures or codes."""
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or not len(pictures):
            raise ValueError(
                f"pictures must be uint8 (n, 3, s, s), got {pictures.dtype} "
                f"{tuple(pictures.shape)}: stack a few images"
            )
        codes, grid = model.config.codes, model.config.grid
        if code is not None and not 0 <= code < codes:
            raise ValueError(f"code is {code}: choose one from 0 to {codes - 1}")
        self.model = model
        self.code = W.Dropdown(description="code")
        self.picture = W.IntSlider(value=1, min=1, max=len(pictures), description="picture")
        self._look(pictures)
        first = int(self.tokens[0, grid * grid // 2 + grid // 2]) if code is None else code
        self.code.value = first
        self.shell = Shell("CodebookExplorer", [self.picture, self.code], self.draw)
        self.view = W.VBox([self.shell.view, Own(self.use, text=None).view])

    def _look(self, pictures: Tensor) -> None:
        """Tokens int64 (n, N) and likeness of all pictures; codes by use in the control."""
        with torch.no_grad():
            parts = [self.model.encode(part.float() / 255) for part in pictures.split(64)]
            self.unit = F.normalize(torch.cat(parts), dim=-1)
            self.tokens = nearest(self.unit, self.model.codebook.vectors)
        self.pictures = pictures
        self.shown = np.ascontiguousarray(rearrange(pictures, "n c h w -> n h w c").numpy())
        counts = torch.bincount(self.tokens.flatten(), minlength=self.model.config.codes)
        self.code.options = [
            (f"{i} ({int(counts[i])} patches)" if counts[i] else f"{i} (dead here)", int(i))
            for i in counts.argsort(descending=True, stable=True)
        ]

    def use(self, image: Given | None = None, text: str | None = None) -> None:
        """Add one's own picture and show it; ValueError for what is no picture."""
        pixels = opened(image)
        if pixels is None:
            return
        added = squared(pixels, self.pictures.shape[-1])
        own = rearrange(torch.from_numpy(added), "h w c -> 1 c h w")
        code = self.code.value
        self._look(torch.cat([self.pictures, own]))
        self.picture.max = len(self.pictures)
        self.code.value, self.picture.value = code, len(self.pictures)

    def draw(self) -> Drawn:
        """The picture of the present code, and its sentence."""
        chosen, index = self.code.value, self.picture.value - 1
        assert isinstance(chosen, int)
        likeness = (self.unit @ self.model.codebook.vectors[chosen]).numpy()
        tokens, codes = self.tokens.numpy(), self.model.config.codes
        return code_picture(self.shown, tokens, likeness, chosen, index, codes)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page for readers without a kernel (see `Shell.export_html`)."""
        self.shell.export_html(path, most)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)
