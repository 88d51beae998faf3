"""Average precision of boxes and masks as COCO scores them, with bootstrap intervals over pictures.

Within a picture, the surest detection of a class takes the free thing of that class that it
overlaps most, if by at least the threshold. Over all pictures, precision is read at 101 levels of
recall, each the best at that recall or higher, and averaged over levels and classes. COCO's crowd
regions and size ranges are left out: the lab's scenes have none.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from minibeit3.objects import Objects, box_iou, mask_iou
from minibeit3.probes_score import Score

THRESHOLDS = np.arange(50, 100, 5) / 100
LEVELS = np.linspace(0, 1, 101)
MOST = 100  # detections that count per picture
RESAMPLES = 200


class Matches(NamedTuple):
    """Detections of one class over all pictures, the surest first.

    picture: int (d,). right: bool (10, d), found a thing at each threshold. things: int (pictures,)
    """

    picture: np.ndarray
    right: np.ndarray
    things: np.ndarray


def average_precision(
    found: Sequence[Objects],
    truth: Sequence[Objects],
    kind: Literal["box", "mask"] = "box",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Score]:
    """ "AP50" (overlap of half) and "AP" (mean over .50, .55, ... .95), means over classes.

    found, truth: one entry per picture. Classes without a thing in `truth` do not count, as in
    COCO. resamples: of the bootstrap; 0 leaves the interval out (NaN).
    Raises ValueError when the lengths differ, or there is nothing to find.
    """
    if len(found) != len(truth) or not sum(len(objects.labels) for objects in truth):
        raise ValueError(
            f"{len(found)} pictures scored, {len(truth)} known, with "
            f"{sum(len(objects.labels) for objects in truth)} things: nothing to compare"
        )
    labels = torch.cat([objects.labels for objects in truth]).unique().tolist()
    by_class = [_match(found, truth, label, kind) for label in labels]
    rng, n = np.random.default_rng(seed), len(truth)
    value = _precision(by_class, np.ones(n))
    drawn = [
        _precision(by_class, np.bincount(rng.integers(n, size=n), minlength=n))
        for _ in range(resamples)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0) if drawn else np.full((2, 2), np.nan)
    return {
        name: Score(float(value[i]), float(low[i]), float(high[i]), n)
        for i, name in enumerate(("AP50", "AP"))
    }


def _match(
    found: Sequence[Objects], truth: Sequence[Objects], label: int, kind: Literal["box", "mask"]
) -> Matches:
    scores, pictures, right, things = [], [], [], []
    for number, (said, true) in enumerate(zip(found, truth, strict=True)):
        order = (said.labels == label).nonzero()[:, 0]
        order = order[said.scores[order].argsort(descending=True, stable=True)][:MOST]
        there = true.labels == label
        if kind == "box":
            iou = box_iou(said.boxes[order], true.boxes[there])
        else:
            iou = mask_iou(said.masks[order], true.masks[there])
        scores.append(said.scores[order].double().numpy())
        pictures.append(np.full(len(order), number))
        right.append(np.stack([_greedy(iou.numpy(), t) for t in THRESHOLDS]))
        things.append(int(there.sum()))
    surest = np.argsort(-np.concatenate(scores), kind="stable")
    return Matches(
        np.concatenate(pictures)[surest], np.concatenate(right, 1)[:, surest], np.array(things)
    )


def _greedy(iou: np.ndarray, threshold: float) -> np.ndarray:
    """bool (detections,): each in turn takes the free thing that it overlaps most."""
    free, right = np.ones(iou.shape[1], bool), np.zeros(len(iou), bool)
    for row, overlaps in enumerate(iou):
        left = np.where(free, overlaps, -1)
        if len(left) and left.max() >= threshold:
            free[left.argmax()] = False
            right[row] = True
    return right


def _precision(by_class: Sequence[Matches], often: np.ndarray) -> np.ndarray:
    """(AP50, AP) when picture i occurs `often[i]` times; NaN when nothing is left to find."""
    values = []
    for picture, right, things in by_class:
        total = (things * often).sum()
        if not total:
            continue
        weight = often[picture]
        hits, shown = (right * weight).cumsum(1), weight.cumsum()
        best = np.maximum.accumulate((hits / np.maximum(shown, 1))[:, ::-1], 1)[:, ::-1]
        at = [np.searchsorted(recall, LEVELS) for recall in hits / total]
        padded = np.pad(best, ((0, 0), (0, 1)))  # levels that are never reached have precision 0
        values.append([row[place].mean() for row, place in zip(padded, at, strict=True)])
    if not values:
        return np.full(2, np.nan)
    by_threshold = np.mean(values, 0)
    return np.array([by_threshold[0], by_threshold.mean()])
