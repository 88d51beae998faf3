"""An accuracy with its interval, and what the probes of a pretrained model share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 1000


class Score(NamedTuple):
    """Mean over n hidden places, with the 95 % interval low to high."""

    accuracy: float
    low: float
    high: float
    n: int


def score(right: Tensor, sample: Tensor, seed: int = 0) -> Score:
    """Accuracy and its 95 % interval by bootstrap over samples.

    right: bool or float (n,), 1 = guessed. sample: int64 (n,), whose place it is: places of one
    sample are guessed from the same context, so samples are drawn anew, not places.
    Raises ValueError when there is nothing to score.
    """
    if len(right) == 0:
        raise ValueError("nothing was hidden, so nothing can be scored: pass more samples")
    _, row = sample.unique(return_inverse=True)
    count = torch.zeros(int(row.max()) + 1, dtype=torch.float64)
    total = count.index_add(0, row, right.double())
    count = count.index_add(0, row, torch.ones(len(row), dtype=torch.float64))
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(count), (RESAMPLES, len(count)), generator=g)
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score((total.sum() / count.sum()).item(), low, high, len(right))


def derangement(n: int, generator: torch.Generator) -> Tensor:
    """A random order int64 (n,) that leaves nothing in its place: one cycle through all.

    Raises ValueError for n < 2, where there is none.
    """
    if n < 2:
        raise ValueError(f"{n} samples cannot be exchanged: pass at least 2")
    cycle = torch.randperm(n, generator=generator)
    return torch.empty(n, dtype=torch.int64).scatter_(0, cycle, cycle.roll(1))


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless `value` is known."""
    if value not in known:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}")
