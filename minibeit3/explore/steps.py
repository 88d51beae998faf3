"""A caption step by step: which beams were open, what came next, who may see whom."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minibeit3.decoding import Score, beam_search, decode
from minibeit3.explore.core import GREY, INK, OUTLINE, PAPER, Picture, font
from minibeit3.explore.rows import fitted
from minibeit3.modes import ImageCaptioner
from minibeit3.visibility import caption_rule


class Step(NamedTuple):
    """One word place. beams: ids without <s>, with their summed log-probability, best first.

    best: (id, probability) of the likeliest next words of the first beam. chosen: what followed.
    """

    beams: list[tuple[list[int], float]]
    best: list[tuple[int, float]]
    chosen: int


@torch.no_grad()
def decoded(
    model: ImageCaptioner, image: Tensor, beams: int, length_penalty: float, max_length: int
) -> tuple[list[Step], list[int]]:
    """Every step of `decoding`, and the caption without specials; image: (1, C, H, W).

    beams: 1 is greedy. The search itself is the package's: its scorer is listened to.
    """
    model.eval()
    score, heard = model.scorer(image), []

    def listening(ids: Tensor, rows: Tensor | None) -> Tensor:
        logits = score(ids, rows)
        heard.append((ids, rows, logits.log_softmax(dim=-1)))
        return logits

    start = torch.full((1, 1), model.bos_id)
    if beams == 1:
        caption = decode(listening, start, model.eos_id, max_length - 3)[0]
    else:
        caption = beam_search(listening, start, model.eos_id, beams, max_length, length_penalty)[0]
    specials = set(model.settings.values())
    words = caption[1:].tolist()
    steps, before = [], torch.zeros(1)
    for at, (ids, rows, log_p) in enumerate(heard):
        if at:
            parents = torch.arange(len(ids)) if rows is None else rows
            before = before[parents] + heard[at - 1][2][parents, ids[:, -1]]
        open_beams = list(zip(ids[:, 1:].tolist(), before.expand(len(ids)).tolist(), strict=True))
        kept = open_beams[:1] if not at else open_beams  # at first all beams are one
        chosen = words[at] if at < len(words) else model.eos_id
        first = max(range(len(kept)), key=lambda i, k=kept: k[i][1])
        ordered = sorted(kept, key=lambda beam: -beam[1])
        steps.append(Step(ordered, _best(log_p[first]), chosen))
        before = before.expand(len(ids))
    return steps, [i for i in words if i not in specials]


@torch.no_grad()
def followed(model: ImageCaptioner, image: Tensor, words: Sequence[int]) -> list[Step]:
    """The steps of a given caption, ids without specials: what the model expected at each word."""
    model.eval()
    score: Score = model.scorer(image)
    path, total, steps = [model.bos_id], 0.0, []
    for word in [*words, model.eos_id]:
        log_p = score(torch.tensor([path]), None).log_softmax(dim=-1)[0]
        steps.append(Step([(path[1:], total)], _best(log_p), word))
        total += float(log_p[word])
        path.append(word)
    return steps


def _best(log_p: Tensor, count: int = 5) -> list[tuple[int, float]]:
    found = log_p.exp().topk(count)
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def rule_picture(words: Sequence[str], cell: int = 22, label: int = 84) -> Picture:
    """Who may attend to whom while the last of `words` is guessed; the image is one row.

    A filled cell with a dot may be seen by the row's token. The last row is outlined.
    """
    names = ["image", *words]
    rule = caption_rule(1, len(words)).numpy()  # all image tokens follow the first one's rule
    side = label + cell * len(names)
    out = Image.new("RGB", (max(side + 4, 224), 24 + cell * len(names)), PAPER)
    draw = ImageDraw.Draw(out)
    draw.text((2, 10), "each row may see the dotted columns", INK, font(12), "lm")
    for (row, column), may in np.ndenumerate(rule):
        x, y = label + column * cell, 22 + row * cell
        fill = (86, 180, 233) if may else PAPER
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=fill, outline=GREY)
        if may:
            draw.ellipse((x + 7, y + 7, x + cell - 9, y + cell - 9), fill=INK)
    for row, name in enumerate(names):
        at = (label - 6, 22 + row * cell + cell / 2)
        draw.text(at, fitted(name, label - 10, 12), INK, font(12), "rm")
    y = 22 + (len(names) - 1) * cell
    draw.rectangle((0, y - 1, side, y + cell - 1), outline=OUTLINE, width=2)
    return np.asarray(out)
