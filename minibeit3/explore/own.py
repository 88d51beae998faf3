"""One's own picture and text in any explorer: an upload, a path, a line of text."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import ipywidgets as W
import numpy as np
from einops import rearrange
from torch import Tensor

from minibeit3.data.images import open_image, to_model, to_pixels
from minibeit3.explore.core import Picture

Given = str | PathLike[str] | bytes | Tensor
Use = Callable[[Tensor | None, str | None], None]


def opened(image: Given | None) -> Tensor | None:
    """uint8 (3, H, W) of a path, of a file's bytes or of such a tensor.

    Raises ImageError, a ValueError, for what is no picture.
    """
    return image if image is None or isinstance(image, Tensor) else open_image(image)


def squared(image: Tensor, size: int) -> Picture:
    """uint8 (3, H, W) as a square picture (size, size, 3), squeezed as models see it."""
    pixels = to_pixels(to_model(image, size))
    return np.ascontiguousarray(rearrange(pixels, "c h w -> h w c").numpy())


class Own:
    """A folded row of controls under an explorer; a mistake is told beside them, not raised."""

    def __init__(self, use: Use, image: bool = True, text: str | None = "text") -> None:
        """use: given what the reader chose, None for what was left empty. image: True = pictures
        are taken. text: name of the text field, None = no text."""
        self.use = use
        self.upload = W.FileUpload(accept="image/*", multiple=False, description="own picture")
        self.path = W.Text(placeholder="or the path of a picture", continuous_update=False)
        self.text = W.Text(placeholder=f"own {text}", continuous_update=False)
        self.said = W.Label()
        self.upload.observe(self._uploaded, names="value")
        self.path.observe(lambda change: self._try(change["new"] or None, None), names="value")
        self.text.observe(lambda change: self._try(None, change["new"] or None), names="value")
        parts = [self.upload, self.path] * image + [self.text] * (text is not None) + [self.said]
        self.view = W.HBox(parts, layout=W.Layout(flex_flow="row wrap"))

    def _uploaded(self, change: Any) -> None:
        files: Any = change["new"]  # ipywidgets 8: a tuple of dicts, 7: name -> dict
        files = list(files.values()) if isinstance(files, dict) else list(files)
        if files:
            self._try(bytes(files[-1]["content"]), None)

    def _try(self, image: str | bytes | None, text: str | None) -> None:
        if image is None and text is None:
            return
        try:
            self.use(opened(image), text)
            self.said.value = ""
        except ValueError as error:
            self.said.value = str(error)
