"""MaskExplorer: what a mask hides, how far the copyable neighbours are, what a model guesses."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import ipywidgets as W
import torch
from torch import Tensor

from minibeit3.explore.core import Drawn, Picture, beside, masked_picture, palette, scaled
from minibeit3.explore.fillin import FillIn, guesses_picture
from minibeit3.explore.hiding import FAR, caption_picture, distance_picture, stacked
from minibeit3.explore.live import open_live
from minibeit3.explore.own import Given, Own, opened, squared
from minibeit3.explore.page import Answer, data_url, live_page
from minibeit3.explore.state import KINDS, SHOWS, MaskState, mask_limits, moved
from minibeit3.explore.widgets import Shell, Twin, settings
from minibeit3.masking import blockwise_mask, random_mask

SIDE = 320  # pixels of a picture on the screen


class MaskExplorer:
    """Block-wise, random and brushed masks over a photograph, hidden words, a model's guesses.

    Where anywidget does not load, the same without the brush through plain controls.
    """

    def __init__(
        self,
        picture: Picture,
        grid: int = 8,
        ratio: float = 0.4,
        words: Sequence[str] = (),
        fill: FillIn | None = None,
    ) -> None:
        """picture: uint8 (H, W, 3), square. words: of its caption; without them no buttons.
        fill: a model whose guesses are shown; then its grid and words stand in for these."""
        self.fill, self.grid = fill, grid if fill is None else fill.grid
        self.kind = W.ToggleButtons(options=KINDS)
        self.show = W.ToggleButtons(options=SHOWS)
        self.ratio = W.FloatSlider(value=ratio, min=0, max=0.9, step=0.05, description="ratio")
        cells = self.grid**2
        block = max(1, round(16 * cells / 196))  # what `blockwise_mask` asks for by itself
        self.most = max(block, cells // 2)
        self.block = W.IntSlider(value=block, min=1, max=self.most, description="min block")
        self.aspect = W.FloatSlider(value=0.3, min=0.1, max=1, step=0.05, description="aspect")
        self.seed = W.IntSlider(value=0, min=0, max=20, description="seed")
        self.named = {"kind": self.kind, "show": self.show, "ratio": self.ratio}
        self.named |= {"block": self.block, "aspect": self.aspect, "seed": self.seed}
        self.own, self.view = Own(self.use, text="caption"), W.VBox()
        self._open(picture, words if fill is None else fill.words)

    def use(self, image: Given | None = None, text: str | None = None) -> None:
        """Mask one's own picture (a path, a file's bytes, uint8 (3, H, W)) or caption.

        What is not given stays. Raises ValueError for a picture that cannot be read.
        """
        pixels = opened(image)
        picture = self.picture if pixels is None else squared(pixels, SIDE)
        words = [b.description for b in self.words] if text is None else text.split()
        if self.fill is not None:
            self.fill = self.fill.another(pixels, text)
            words = self.fill.words
        self._open(picture, words)

    def _open(self, picture: Picture, words: Sequence[str]) -> None:
        self.picture = picture
        self.words = [W.ToggleButton(description=word) for word in words]
        for button in self.words:
            button.layout.width = "auto"
        controls = [*self.named.values(), *self.words]
        self.twin = Twin(
            MaskState(**self._read()),
            mask_limits(self.grid, len(self.words), self.most),
            controls,
            self._read,
            self._write,
            lambda: self.shell.refresh(),
        )
        self.shell = Shell("MaskExplorer", controls, self.draw, watch=False)
        view = self.twin.view()
        self.live = open_live("mask", self.spec(), view, self.answer, self.twin.tell)
        self.twin.live = self.live
        self.view.children = (self.live or self.shell.view, self.own.view)

    def _read(self) -> dict[str, Any]:
        said = {name: control.value for name, control in self.named.items()}
        said |= {name: round(said[name], 4) for name in ("ratio", "aspect")}
        return said | {"words": "".join("01"[bool(b.value)] for b in self.words)}

    def _write(self, state: MaskState) -> None:
        for name, control in self.named.items():
            control.value = getattr(state, name)
        for button, bit in zip(self.words, state.words, strict=True):
            button.value = bit == "1"

    def hidden(self) -> Tensor:
        """The present mask, bool (grid, grid), True = hidden."""
        state = self.twin.state
        return mask_of(state, self.grid)

    def spec(self, fixed: Sequence[str] = ()) -> dict[str, Any]:
        """What the browser's module is given once; fixed: controls that need a kernel."""
        return {
            "grid": self.grid,
            "words": [b.description for b in self.words],
            "picture": data_url(scaled(self.picture, SIDE)),
            "palette": palette(),
            "far": FAR,
            "most": self.most,
            "fills": self.fill is not None,
            "fixed": list(fixed),
            "hidden": bits_of(self.hidden()),
        }

    def answer(self, key: str) -> Answer:
        """The mask of "mask|kind|ratio|block|aspect|seed", or the guesses of "guess|patches|words"
        (strings of 0 and 1, 1 = hidden)."""
        what, _, said = key.partition("|")
        parts = said.split("|")
        if what == "mask" and len(parts) == len(self.named) - 1:
            kind, ratio, block, aspect, seed = parts
            event = {"kind": kind, "ratio": float(ratio), "block": int(block)}
            event |= {"aspect": float(aspect), "seed": int(seed), "brushed": ""}
            state = moved(self.twin.state, event, self.twin.limits)
            return {"hidden": bits_of(mask_of(state, self.grid))}, b""
        if what == "guess" and len(parts) == 2 and self.fill is not None:
            event = {"brushed": parts[0], "words": parts[1]}
            state = moved(self.twin.state, event, self.twin.limits)
            gone = [bit == "1" for bit in state.words]
            return self.fill.guess(mask_of(state, self.grid), gone), b""
        raise ValueError(f"{key!r} is no question: ask mask|... or guess|patches|words")

    def draw(self) -> Drawn:
        """The picture of the present settings, and its sentence."""
        paint = distance_picture if self.show.value == "distance" else masked_picture
        hidden = self.hidden()
        top = paint(self.picture, hidden.numpy())
        gone = [bool(b.value) for b in self.words]
        if self.words:
            top = stacked(top, caption_picture([b.description for b in self.words], gone))
        if self.fill is None:
            return top
        guessed = guesses_picture(self.fill.guess(hidden, gone))
        return Drawn(beside([top, guessed]).picture, top.alt + guessed.alt)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)

    def export_html(self, path: str | PathLike[str]) -> None:
        """One page with brush, words, and all masks by kind, ratio and seed.

        Least block and aspect stay as they are; guesses are kept for the present mask alone.
        """
        state = self.twin.state
        ratios = sorted({round(v, 4) for _, v in settings(self.ratio)} | {state.ratio})
        fixed = f"{state.block}|{state.aspect:g}"
        keys = [
            f"mask|{kind}|{ratio:g}|{fixed}|{seed}"
            for kind in KINDS
            for ratio in ratios
            for seed in range(int(self.seed.max) + 1)
        ]
        if self.fill is not None:
            keys.append(f"guess|{bits_of(self.hidden())}|{state.words}")
        answers = {key: self.answer(key) for key in keys}
        spec = self.spec(fixed=("block", "aspect"))
        page = live_page("mask", repr(self), spec, self.twin.view(), answers)
        Path(path).write_text(page, encoding="utf-8")


def mask_of(state: MaskState, grid: int) -> Tensor:
    """The mask of a state, bool (grid, grid), True = hidden."""
    if state.brushed:
        return torch.tensor([bit == "1" for bit in state.brushed]).view(grid, grid)
    generator = torch.Generator().manual_seed(state.seed)
    count = round(state.ratio * grid**2)
    if state.kind == "random":
        return random_mask(grid, count, generator)
    low = state.aspect
    return blockwise_mask(grid, count, generator, state.block, (low, 1 / low))


def bits_of(hidden: Tensor) -> str:
    """A mask as zeros and ones, 1 = hidden, row by row."""
    return "".join("01"[bit] for bit in hidden.flatten().int().tolist())
