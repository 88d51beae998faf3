"""The field's metrics that no light library gives, with 95 % intervals.

Top-1, recall@k, span F1 and mean IoU are ratios of sums over items (a sample, a query, a sentence,
a picture), so one bootstrap over items serves them all. CIDEr-D is the captioning metric of the
COCO server. Boxes and masks of objects: `metrics_detection`.

Legend: B items, C classes, Q queries, R candidates.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minibeit3.probes_score import RESAMPLES, Score, score

Measure = Callable[[Tensor], Tensor]  # float64 sums (..., *counts) to values (...)
IGNORE = 255  # class of pixels that do not count, as in `Sample.regions`


def of_sums(counts: Tensor, measure: Measure, seed: int = 0) -> Score:
    """`measure` of the summed counts, and its 95 % interval by bootstrap over items.

    counts: (B, ...), what each item adds. measure: float64 sums (..., *counts) to values (...),
    NaN where there is nothing to measure.
    Raises ValueError when there are no items, or nothing to measure in them.
    """
    n = len(counts)
    value = measure(counts.double().sum(0)).item() if n else math.nan
    if math.isnan(value):
        raise ValueError(f"nothing to measure in {n} items: pass more, or another split")
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    often = torch.zeros(drawn.shape, dtype=torch.float64)
    often.scatter_add_(1, drawn, torch.ones_like(often))
    found = measure(torch.einsum("rb, b... -> r...", often, counts.double()))
    low, high = found.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(value, low, high, n)


# ---- classes and neighbours


def top1(predicted: Tensor, labels: Tensor, seed: int = 0) -> Score:
    """Share of int64 `predicted` (B,) that equal int64 `labels` (B,).

    Raises ValueError for other shapes and for no items.
    """
    _same_shape(predicted, labels)
    return score(predicted == labels, torch.arange(len(labels)), seed)


def recall_at(k: int, similarity: Tensor, right: Tensor, seed: int = 0) -> Score:
    """Share of queries with a right candidate among the k most similar ones.

    similarity: float (Q, R). right: bool (Q, R), True = a right answer; there may be several, as
    for identical pictures. A wrong candidate that ties with the best right one stands before it,
    so a model that says the same of all candidates finds nothing.
    Raises ValueError for other shapes, k below 1, or a query without a right candidate.
    """
    _same_shape(similarity, right)
    if k < 1:
        raise ValueError(f"k is {k}, must be 1 or more")
    if not right.any(1).all():
        raise ValueError(f"{int((~right.any(1)).sum())} queries have no right candidate")
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    before = (~right & (similarity >= best)).sum(1)
    return score(before < k, torch.arange(len(right)), seed)


# ---- pixels


def confusion(predicted: Tensor, regions: Tensor, classes: int) -> Tensor:
    """int64 (B, C, C): pixels of each picture by true class (row) and predicted class (column).

    predicted, regions: int64 (B, H, W), classes 0 .. C - 1; regions may be 255 = ignore.
    Raises ValueError for other shapes and classes.
    """
    _same_shape(predicted, regions)
    counts = regions != IGNORE
    for name, found in (("predicted", predicted[counts]), ("regions", regions[counts])):
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < classes:
            raise ValueError(
                f"{name} has classes {int(found.min())} .. {int(found.max())}, not 0 .. "
                f"{classes - 1}"
            )
    picture = torch.arange(len(regions))[:, None, None].expand_as(regions)
    cells = (picture * classes + regions) * classes + predicted
    sums = cells[counts].bincount(minlength=len(regions) * classes**2)
    return sums.unflatten(0, (len(regions), classes, classes))


def class_iou(sums: Tensor) -> Tensor:
    """(..., C) intersection over union by class from confusions (..., C, C); NaN = not there."""
    hits = sums.diagonal(dim1=-2, dim2=-1).double()
    return hits / (sums.sum(-1) + sums.sum(-2) - hits)


def mean_iou(confusions: Tensor, seed: int = 0) -> Score:
    """Mean over classes of the IoU of all pixels together (ADE20K's mIoU), from (B, C, C).

    A class that is neither shown nor predicted does not count.
    """
    return of_sums(confusions, lambda sums: class_iou(sums).nanmean(-1), seed)


# ---- spans of tagged words


def spans(tags: Sequence[int]) -> set[tuple[int, int]]:
    """(first, past the last) of every span in BIO tags: 0 outside, 1 begins, 2 continues.

    A 2 without a span before it begins one, as the CoNLL scorer reads it.
    """
    before = [0, *tags]
    starts = [i for i, tag in enumerate(tags) if tag == 1 or (tag == 2 and not before[i])]
    ends = (next((j for j in range(i + 1, len(tags)) if tags[j] != 2), len(tags)) for i in starts)
    return set(zip(starts, ends, strict=True))


def span_f1(predicted: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> Score:
    """F1 of exactly found spans, one list of BIO tags per sentence.

    Raises ValueError when a sentence has another number of tags, or nowhere is a span.
    """
    counts = []
    for said, true in zip(predicted, truth, strict=True):
        if len(said) != len(true):
            raise ValueError(f"{len(said)} tags for {len(true)} words in sentence {len(counts)}")
        found, there = spans(said), spans(true)
        counts.append((2 * len(found & there), len(found) + len(there)))
    return of_sums(torch.tensor(counts).reshape(-1, 2), lambda sums: sums[..., 0] / sums[..., 1])


# ---- captions

Grams = Counter[tuple[str, ...]]
NGRAMS = 4
CIDER_SIGMA = 6.0


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of every caption against its references; report the mean (arXiv 1411.5726, 4).

    Consensus of 1- to 4-grams weighted by how rare they are among the pictures' references, clipped
    so that repeating a word gains nothing, with a Gaussian penalty on the length; 10 = identical.
    The rarity comes from the references given here: one picture alone scores 0, and scores of
    different test sets do not compare.
    Departure: words are runs of letters and digits in lower case, not the server's PTB tokens.
    Raises ValueError for no captions, unequal lengths, or a picture without references.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(
            f"{len(captions)} captions, {len(references)} pictures of which "
            f"{sum(not texts for texts in references)} have no reference: give each at least one"
        )
    grams = [[_ngrams(text) for text in texts] for texts in references]
    seen = Counter(gram for texts in grams for gram in set().union(*texts))

    def weighed(counts: Grams, n: int) -> dict[tuple[str, ...], float]:
        chosen = {gram: count for gram, count in counts.items() if len(gram) == n}
        return {g: c * math.log(len(references) / max(1, seen[g])) for g, c in chosen.items()}

    def similarity(said: Grams, meant: Grams) -> float:
        gap = sum(said[g] for g in said if len(g) == 1) - sum(
            meant[g] for g in meant if len(g) == 1
        )
        total = 0.0
        for n in range(1, NGRAMS + 1):
            a, b = weighed(said, n), weighed(meant, n)
            norm = math.hypot(*a.values()) * math.hypot(*b.values())
            both = sum(min(a[gram], b[gram]) * b[gram] for gram in a.keys() & b.keys())
            total += both / norm if norm else 0.0
        return math.exp(-(gap**2) / (2 * CIDER_SIGMA**2)) * total / NGRAMS

    return [
        10 * sum(similarity(_ngrams(caption), text) for text in texts) / len(texts)
        for caption, texts in zip(captions, grams, strict=True)
    ]


def _ngrams(text: str) -> Grams:
    words = re.findall(r"\w+", text.lower())
    return Counter(
        tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1)
    )


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} must be equal")
