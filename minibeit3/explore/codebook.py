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
        with torch.no_grad():
            parts = [model.encode(part.float() / 255) for part in pictures.split(64)]
            unit = F.normalize(torch.cat(parts), dim=-1)
            self.tokens = nearest(unit, model.codebook.vectors)
        shown = np.ascontiguousarray(rearrange(pictures, "n c h w -> n h w c").numpy())
        counts = torch.bincount(self.tokens.flatten(), minlength=codes)
        names = [
            (f"{i} ({int(counts[i])} patches)" if counts[i] else f"{i} (dead here)", int(i))
            for i in counts.argsort(descending=True, stable=True)
        ]
        first = int(self.tokens[0, grid * grid // 2 + grid // 2]) if code is None else code
        self.code = W.Dropdown(options=names, value=first, description="code")
        self.picture = W.IntSlider(value=1, min=1, max=len(shown), description="picture")

        def draw() -> Drawn:
            chosen, index = self.code.value, self.picture.value - 1
            assert isinstance(chosen, int)
            likeness = (unit @ model.codebook.vectors[chosen]).numpy()
            return code_picture(shown, self.tokens.numpy(), likeness, chosen, index, codes)

        self.shell = Shell("CodebookExplorer", [self.picture, self.code], draw)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page for readers without a kernel (see `Shell.export_html`)."""
        self.shell.export_html(path, most)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle()
