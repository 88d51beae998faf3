"""What a pretrained model guesses for hidden words and patches, with probability and truth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minibeit3.data.images import to_model, to_pixels
from minibeit3.explore.core import Drawn
from minibeit3.explore.rows import Row as Bar
from minibeit3.explore.rows import below, rows_picture, titled
from minibeit3.objective import MaskedBatch, MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer

Row = Mapping[str, Any]


class FillIn:
    """A picture, a caption, and a model that fills in what is hidden of them."""

    def __init__(
        self,
        model: MaskedDataModel,
        tokenizer: TextTokenizer,
        image: Tensor,
        text: str,
        codes: Callable[[Tensor], Tensor] | None = None,
        best: int = 5,
    ) -> None:
        """image: uint8 (3, H, W). codes: float (1, 3, S, S) in [0, 1] to int64 (1, N), the visual
        tokenizer, for the truth of patches; None = unknown. best: guesses per place."""
        config = model.backbone.config
        self.model, self.tokenizer, self.codes, self.best = model.eval(), tokenizer, codes, best
        self.grid, self.text = config.grid, text
        self.image = to_model(image[None], config.image_size)
        self.ids = tokenizer.batch([text], config.max_text_length)[0]
        self.words = [self.name(i) for i in self.ids[0, 1:-1].tolist()]
        self.truth = None if codes is None else codes(to_pixels(self.image).float() / 255)[0]

    def name(self, word: int) -> str:
        """A word's piece as readers see it."""
        return self.tokenizer.piece(word).lstrip("▁") or "▁"

    def another(self, image: Tensor | None, text: str | None) -> "FillIn":
        """The same model on another picture or caption; None = as before."""
        pixels = to_pixels(self.image)[0] if image is None else image
        said = self.text if text is None else text
        return FillIn(self.model, self.tokenizer, pixels, said, self.codes, self.best)

    @torch.no_grad()
    def guess(self, hidden: Tensor, gone: Sequence[bool]) -> dict[str, list[Row]]:
        """The best guesses at all hidden places, one pass.

        hidden: bool (grid, grid), gone: one bool per word, True = hidden. Rows of "patches" and
        "words": place (from 0), truth (None = unknown) and best, pairs of name and probability.
        """
        place = torch.zeros_like(self.ids, dtype=torch.bool)
        place[0, 1:-1] = torch.tensor(list(gone), dtype=torch.bool)
        text = self.ids.masked_fill(place, self.tokenizer.mask_id)
        flat = hidden.flatten()[None]
        truth = torch.zeros_like(flat, dtype=torch.long) if self.truth is None else self.truth[None]
        batch = MaskedBatch(self.image, flat, truth, text, None, place, self.ids, pairs=1)
        patches, words = self.model(batch)
        assert patches is not None and words is not None
        known = None if self.truth is None else [str(int(i)) for i in patches.targets]
        meant = [self.name(int(i)) for i in words.targets]
        at = flat[0].nonzero().flatten().tolist(), (place[0, 1:-1]).nonzero().flatten().tolist()
        return {
            "patches": self._rows(patches.logits, at[0], known, str),
            "words": self._rows(words.logits, at[1], meant, self.name),
        }

    def _rows(
        self,
        logits: Tensor,
        places: Sequence[int],
        truth: Sequence[str] | None,
        name: Callable[[int], str],
    ) -> list[Row]:
        chances = logits.float().softmax(dim=-1).topk(self.best)
        pairs = zip(chances.indices.tolist(), chances.values.tolist(), strict=True)
        return [
            {
                "place": place,
                "truth": None if truth is None else truth[row],
                "best": [(name(i), round(p, 4)) for i, p in zip(ids, values, strict=True)],
            }
            for row, (place, (ids, values)) in enumerate(zip(places, pairs, strict=True))
        ]


def guesses_picture(guesses: Mapping[str, Sequence[Row]]) -> Drawn:
    """The guesses for hidden words as bars, the true word outlined, and the sentence."""
    parts = []
    for row in guesses["words"][:4]:
        bars = [
            Bar(name, chance, f"{100 * chance:.1f}%", mark=name == row["truth"])
            for name, chance in row["best"][:3]
        ]
        title = f"word {row['place'] + 1}, truth: {row['truth']}"
        parts.append(titled(title, rows_picture(bars, 300, 100)))
    blank = np.full((1, 1, 3), 255, np.uint8)
    return Drawn(below(parts) if parts else blank, guesses_sentence(guesses))


def guesses_sentence(guesses: Mapping[str, Sequence[Row]]) -> str:
    """The guesses in words, those of patches as a count."""
    parts = []
    for row in guesses["words"]:
        (name, chance), truth = row["best"][0], row["truth"]
        verdict = "right" if name == truth else f"truth '{truth}'"
        parts.append(f"word {row['place'] + 1}: '{name}' {100 * chance:.0f}%, {verdict}")
    known = [row for row in guesses["patches"] if row["truth"] is not None]
    if known:
        hits = sum(row["best"][0][0] == row["truth"] for row in known)
        parts.append(f"{hits} of {len(known)} hidden codes right")
    return f" Guesses: {'; '.join(parts)}." if parts else ""
