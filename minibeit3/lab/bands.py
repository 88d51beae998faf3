"""Figures of the long runs in results/modes, read and compared; nothing is typed by hand.

long = lab.band("scenes-vqa", "accuracy")                   # several seeds, or None
print(lab.told(long))                                       # 91% ± 1, or that none exists
print(lab.verdict(long, lab.lines("scenes-vqa", "accuracy")["question only"]))
"""

from collections.abc import Mapping, Sequence
from math import nan, sqrt
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from minibeit3.bands import LEAST, WIDE, known_lines, lines_of, study_of

Verdict = Literal["above", "within noise", "below", "unknown"]
MISSING = "no long run of this kind yet"


class Measured(NamedTuple):
    """A figure and what it may vary by.

    sd: over `n` runs (nan for one run), or for one scored model, `counted`, the standard error.
    steps, seconds: of training, CPU-seconds; 0 where nothing was trained.
    """

    mean: float
    sd: float
    n: int
    steps: int = 0
    seconds: float = 0.0

    def holds(self, value: float) -> bool:
        """True when the value is within two standard deviations of the mean; False for one run."""
        return abs(value - self.mean) <= WIDE * self.sd + 1e-9


def band(
    recipe: str,
    figure: str,
    *,
    start: str = "pretrained",
    labels: int | None = None,
    blind: str | None = None,
    holdout: str | None = None,
    steps: int | None = None,
) -> Measured | None:
    """Mean and spread over the seeds of the study's runs; None when there is no such run.

    start: "pretrained" or "scratch". labels: training samples, None = all. blind: the modality that
    the model never saw. holdout: what training left out. steps: None = the longest such runs.
    """
    wanted = {"start": start, "labels": labels, "blind": blind, "holdout": holdout}
    study = study_of(recipe) or {}
    runs = [
        run
        for run in study.get("runs", [])
        if figure in run["figures"] and all(run.get(k) == v for k, v in wanted.items())
    ]
    return over_seeds(runs, figure, steps)


def over_seeds(
    runs: Sequence[Mapping[str, Any]], figure: str, steps: int | None = None
) -> Measured | None:
    """Mean and spread of the runs with that many steps, None = with the most."""
    length = max((run["steps"] for run in runs), default=0) if steps is None else steps
    same = [run for run in runs if run["steps"] == length]
    most = max((run["limit"] for run in same), default=0)
    same = [run for run in same if run["limit"] == most]  # samples that were asked
    if not same:
        return None
    values = [run["figures"][figure] for run in same]
    sd = stdev(values) if len(values) >= LEAST else nan
    return Measured(mean(values), sd, len(same), length, mean(r["training_cpu_s"] for r in same))


def known(recipe: str, field: str) -> list[Any]:
    """Values of a field of the study's runs ("labels", "holdout", "blind"), in the file's order."""
    return list(dict.fromkeys(run.get(field) for run in (study_of(recipe) or {}).get("runs", [])))


def lines(recipe: str, figure: str, labels: int | None = None) -> dict[str, float]:
    """Name -> value of all lines without a model of ours.

    labels: training samples, None = all. A line that was not measured with so few has all.
    """
    return lines_of(study_of(recipe) or {}, known_lines(recipe), figure, labels)


def counted(share: float, samples: int) -> Measured:
    """The share of `samples` that one model has right, with its standard error (binomial)."""
    return Measured(share, sqrt(max(share * (1 - share), 0.25 / samples) / samples), 1)


def verdict(value: Measured | float | None, other: Measured | float | None) -> Verdict:
    """How the first stands to the second: apart by more than twice the standard error, or not.

    The spread of seeds is divided by the root of their number. "unknown" when one is missing or is
    a single run without a spread.
    """
    a, b = (Measured(x, 0.0, 1) if isinstance(x, float | int) else x for x in (value, other))
    if a is None or b is None or a.sd != a.sd or b.sd != b.sd:
        return "unknown"
    noise = WIDE * sqrt(a.sd**2 / a.n + b.sd**2 / b.n) + 1e-9
    if abs(a.mean - b.mean) <= noise:
        return "within noise"
    return "above" if a.mean > b.mean else "below"


def told(value: Measured | float | None) -> str:
    """In per cent: "91% ± 1 (3 seeds, 2000 steps)"; a plain sentence when there is no run."""
    if value is None:
        return MISSING
    if not isinstance(value, Measured):
        return f"{100 * value:.0f}%"
    spread = "" if value.sd != value.sd else f" ± {100 * value.sd:.0f}"
    runs = "1 seed" if value.n == 1 else f"{value.n} seeds"
    return f"{100 * value.mean:.0f}%{spread}" + (
        f" ({runs}, {value.steps} steps)" if value.steps else ""
    )
