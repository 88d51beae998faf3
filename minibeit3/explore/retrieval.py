"""RetrievalExplorer: a text finds pictures, a picture finds texts, and how often they are right."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import ipywidgets as W
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minibeit3.data.images import to_model
from minibeit3.explore.core import INK, OUTLINE, PAPER, Drawn, Floats, Picture, font, scaled
from minibeit3.explore.own import Given, Own, opened, squared
from minibeit3.explore.rows import Row, below, rows_picture, titled
from minibeit3.explore.widgets import Shell
from minibeit3.modes import ImageTextRetriever
from minibeit3.text_tokenizer import TextTokenizer

CELL = 112
WAYS = ("text to pictures", "picture to texts")


def recalls(likeness: Floats, truth: Sequence[int | None]) -> dict[int, float]:
    """Share of queries whose true answer is among the first 1, 5, 10.

    likeness: (queries, candidates). truth: candidate of each query, None = unknown, not counted.
    """
    known = [(row, t) for row, t in enumerate(truth) if t is not None]
    ranks = np.array([place(likeness[row], t) for row, t in known])
    return {k: float((ranks <= k).mean()) if len(ranks) else 0.0 for k in (1, 5, 10)}


def place(likeness: Floats, candidate: int) -> int:
    """Rank of a candidate in a row of likenesses, 1 = best; ties go to the earlier one."""
    order = np.argsort(-likeness, kind="stable")
    return int(np.flatnonzero(order == candidate)[0]) + 1


def found_pictures(pictures: Picture, row: Floats, truth: int | None, top: int) -> Picture:
    """The `top` most alike of pictures (n, s, s, 3), best first, the true one marked."""
    best = np.argsort(-row, kind="stable")[:top]
    out = Image.new("RGB", (5 * (CELL + 10), (CELL + 28) * -(-len(best) // 5)), PAPER)
    draw = ImageDraw.Draw(out)
    for at, index in enumerate(best):
        x, y = at % 5 * (CELL + 10), at // 5 * (CELL + 28)
        out.paste(Image.fromarray(scaled(pictures[index], CELL)), (x, y))
        said = f"{at + 1}: {row[index]:.2f}" + " its own" * int(index == truth)
        draw.text((x + 2, y + CELL + 12), said, INK, font(13), "lm")
        if index == truth:
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=OUTLINE, width=4)
    return np.asarray(out)


class RetrievalExplorer:
    """Nearest pictures of a text and nearest texts of a picture, with cosine and truth."""

    def __init__(
        self,
        model: ImageTextRetriever,
        pictures: Tensor,
        texts: Sequence[str],
        tokenizer: TextTokenizer,
    ) -> None:
        """pictures: uint8 (n, 3, H, W). texts: text i belongs to picture i. Raises ValueError
        when their numbers differ or there are none."""
        if not len(pictures) or len(pictures) != len(texts):
            raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts: give pairs")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.texts, self.size = list(texts), model.backbone.config.image_size
        self.truth: list[int | None] = list(range(len(texts)))  # the picture of each text
        shown = [squared(picture, 2 * CELL) for picture in pictures]
        self.pictures = np.stack(shown)
        self.image_vectors, self.text_vectors = self._images(pictures), self._texts(texts)
        self.way = W.Dropdown(options=WAYS, description="search")
        self.text = W.Dropdown(description="text")
        self.picture = W.IntSlider(value=1, min=1, max=len(texts), description="picture")
        self.top = W.IntSlider(value=5, min=1, max=min(10, len(texts)), description="show")
        self.text.layout.width = "420px"
        self._name_texts(0)
        controls = [self.way, self.text, self.picture, self.top]
        self.shell = Shell("RetrievalExplorer", controls, self.draw)
        self.view = W.VBox([self.shell.view, Own(self.use, text="query").view])

    def _name_texts(self, chosen: int) -> None:
        self.text.options = [(f"{i + 1}: {text}", i) for i, text in enumerate(self.texts)]
        self.text.value = chosen

    @torch.no_grad()
    def _images(self, pictures: Tensor) -> Floats:
        return self.model.embed_image(to_model(pictures, self.size)).numpy()

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> Floats:
        length = self.model.backbone.config.max_text_length
        return self.model.embed_text(*self.tokenizer.batch(list(texts), length)).numpy()

    def use(self, image: Given | None = None, text: str | None = None) -> None:
        """Add one's own picture or text to those that are searched, and search with it."""
        pixels = opened(image)
        if text is not None:
            self.text_vectors = np.concatenate([self.text_vectors, self._texts([text])])
            self.texts.append(text)
            self.truth.append(None)
            self._name_texts(len(self.texts) - 1)
            self.way.value = WAYS[0]
        if pixels is not None:
            self.image_vectors = np.concatenate([self.image_vectors, self._images(pixels[None])])
            self.pictures = np.concatenate([self.pictures, squared(pixels, 2 * CELL)[None]])
            self.picture.max = len(self.pictures)
            self.picture.value, self.way.value = len(self.pictures), WAYS[1]
        self.shell.refresh()

    def draw(self) -> Drawn:
        """The picture of the present search, and its sentence."""
        likeness, top = self.text_vectors @ self.image_vectors.T, int(self.top.value)
        if self.way.value == WAYS[0]:
            query, name = int(self.text.value or 0), "text"
            row, truth = likeness[query], self.truth[query]
            found = found_pictures(self.pictures, row, truth, top)
            title, best = self.texts[query], f"picture {int(row.argmax()) + 1}"
            scores = recalls(likeness, self.truth)
        else:
            query, name = int(self.picture.value) - 1, "picture"
            row = likeness[:, query]
            back: list[int | None] = [None] * len(self.pictures)
            for text, picture in enumerate(self.truth):
                if picture is not None:
                    back[picture] = text
            truth, order = back[query], np.argsort(-row, kind="stable")[:top]
            rows = [
                Row(
                    self.texts[i],
                    float(row[i]),
                    f"{row[i]:.2f}{' its own' * int(i == truth)}",
                    i == truth,
                )
                for i in order
            ]
            asked = scaled(self.pictures[query], CELL)
            found = below([asked, rows_picture(rows, 620, 400)])
            title, best = f"picture {query + 1}", f"'{self.texts[int(row.argmax())]}'"
            scores = recalls(likeness.T, back)
        said = f"The {name} {query + 1} finds {best} first ({row.max():.2f})"
        if truth is not None:
            said += f"; its own partner has place {place(row, truth)} of {len(row)}"
        rates = ", ".join(f"{k}: {100 * v:.0f}%" for k, v in scores.items())
        rates = f"Over all {WAYS[0] if name == 'text' else WAYS[1]}, among the first {rates}."
        footer = titled(rates, np.full((1, 620, 3), 255, np.uint8))
        return Drawn(below([titled(title, found), footer]), f"{said}. {rates}")

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page for readers without a kernel (see `Shell.export_html`)."""
        self.shell.export_html(path, most)
