"""CaptionExplorer: step through decoding, with beams, next words and the caption rule."""

from os import PathLike
from typing import Any

import ipywidgets as W
from torch import Tensor

from minibeit3.data.images import to_model
from minibeit3.explore.core import Drawn, beside
from minibeit3.explore.own import Given, Own, opened, squared
from minibeit3.explore.rows import Row, below, rows_picture, titled
from minibeit3.explore.steps import Step, decoded, followed, rule_picture
from minibeit3.explore.widgets import Shell
from minibeit3.modes import ImageCaptioner
from minibeit3.text_tokenizer import TextTokenizer

SIDE = 224


class CaptionExplorer:
    """One picture's caption word by word: open beams, likeliest next words, who sees whom."""

    def __init__(
        self,
        model: ImageCaptioner,
        tokenizer: TextTokenizer,
        image: Tensor,
        max_length: int = 16,
        own_caption: str | None = None,
    ) -> None:
        """image: uint8 (3, H, W). max_length: places of a caption as in `generate`, from 4 to the
        model's limit (ValueError). own_caption: followed word by word in place of decoding."""
        limit = model.backbone.config.max_text_length
        if not 4 <= max_length <= limit:
            raise ValueError(f"max_length {max_length} is not in 4..{limit}, the model's limit")
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.image, self.own_caption = image, own_caption
        self.beams = W.IntSlider(value=3, min=1, max=5, description="beams")
        self.penalty = W.FloatSlider(
            value=0.6, min=0, max=2, step=0.2, description="length penalty"
        )
        self.step = W.IntSlider(value=1, min=1, max=max_length, description="step")
        self.memory: dict[tuple[Any, ...], tuple[list[Step], list[int]]] = {}
        self.forget = W.Button(description="back to decoding")
        self.forget.on_click(self._decode_again)
        controls = [self.beams, self.penalty, self.step]
        self.shell = Shell("CaptionExplorer", controls, self.draw)
        own = Own(self.use, text="caption to follow")
        self.view = W.VBox([self.shell.view, own.view, self.forget])

    def use(self, image: Given | None = None, text: str | None = None) -> None:
        """Caption one's own picture, or follow one's own caption word by word."""
        pixels = opened(image)
        if pixels is not None:
            self.image = pixels
        if text is not None:
            self.own_caption = text
        self.memory.clear()
        self.shell.refresh()

    def _decode_again(self, _: object = None) -> None:
        self.own_caption = None
        self.shell.refresh()

    def steps(self) -> tuple[list[Step], list[int]]:
        """All steps of the present settings, and the caption's ids without specials."""
        own = self.own_caption
        key = (own,) if own is not None else (self.beams.value, self.penalty.value)
        if key not in self.memory:
            image = to_model(self.image[None], self.model.backbone.config.image_size)
            if own is not None:
                words = self.tokenizer.token_ids(own)[: self.max_length - 3]
                found = followed(self.model, image, words), words
            else:
                beams, penalty = int(self.beams.value), float(self.penalty.value)
                found = decoded(self.model, image, beams, penalty, self.max_length)
            self.memory[key] = found
        return self.memory[key]

    def name(self, word: int) -> str:
        """A word as readers see it, also an id that the tokenizer lacks."""
        if word >= len(self.tokenizer):
            return f"id {word}"
        return self.tokenizer.piece(word).lstrip("▁") or "▁"

    def draw(self) -> Drawn:
        """Picture, beams, next words and rule of the present step, and the sentence."""
        steps, caption = self.steps()
        at = min(int(self.step.value), len(steps))
        step = steps[at - 1]
        likely = [
            Row(self.name(i), p, f"{100 * p:.1f}%", mark=i == step.chosen) for i, p in step.best
        ]
        top = step.beams[0][1]
        beams = [
            Row(" ".join(map(self.name, ids)) or "<s>", 2.0 ** (total - top), f"{total:.2f}")
            for ids, total in step.beams
        ]
        written = [self.name(i) for i in step.beams[0][0]]
        right = below(
            [
                titled("open captions, summed log-probability", rows_picture(beams, 560, 360)),
                titled(f"word {at}: likeliest, outlined what is in the caption",
                       rows_picture(likely, 560, 160)),
            ]
        )  # fmt: skip
        whole = self.tokenizer.decode([i for i in caption if i < len(self.tokenizer)])
        left = below([squared(self.image, SIDE), rule_picture(["<s>", *written, "<mask>"])])
        word, chance = step.best[0]
        kind = "Own caption" if self.own_caption is not None else "Caption"
        alt = (
            f"{kind} '{whole}', step {at} of {len(steps)}: after "
            f"'{' '.join(written) or '<s>'}' the likeliest word is '{self.name(word)}' "
            f"({100 * chance:.0f}%), the caption has '{self.name(step.chosen)}'; "
            f"{len(step.beams)} open."
        )
        sides = beside([Drawn(left, ""), Drawn(right, "")]).picture
        return Drawn(titled(f"{kind}: {whole}", sides), alt)

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page for readers without a kernel (see `Shell.export_html`)."""
        self.shell.export_html(path, most)
