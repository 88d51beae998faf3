"""What a fine-tuned model's figures should be: mean and spread over the seeds of a study.

`tools/study_modes.py` writes one file per recipe, `results/modes/<recipe>.json`; its "runs" are
read here, so the bands are never typed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from minibeit3.data.paths import data_root
from minibeit3.storage import read_json

VARIANT = ("start", "labels", "blind", "holdout", "steps", "limit")
"""What tells one kind of run from another; within it the seeds differ."""
WIDE = 2.0  # standard deviations on either side of the mean
LEAST = 2  # seeds that make a band


class Band(NamedTuple):
    """Figures of several seeds."""

    mean: float
    sd: float
    n: int

    def holds(self, value: float) -> bool:
        """True when the value is within two standard deviations of the mean."""
        return abs(value - self.mean) <= WIDE * self.sd + 1e-9


def results_file(recipe: str) -> Path:
    """Where the study of a recipe lies, whether it is there or not."""
    return data_root().parent / "results" / "modes" / f"{recipe}.json"


def variant_of(run: Mapping[str, Any]) -> tuple[object, ...]:
    """The kind of a run, to group seeds by."""
    return tuple(run.get(field) for field in VARIANT)


def bands(
    runs: Sequence[Mapping[str, Any]], variant: tuple[object, ...] | None = None
) -> dict[str, Band]:
    """Figure -> band over the seeds of one variant, for figures that two or more seeds have."""
    values: dict[str, list[float]] = {}
    for run in runs:
        if variant in (None, variant_of(run)):
            for name, value in run["figures"].items():
                values.setdefault(name, []).append(value)
    return {k: Band(mean(v), stdev(v), len(v)) for k, v in values.items() if len(v) >= LEAST}


def known_lines(recipe: str) -> dict[str, Any]:
    """The recipe's part of results/reference_lines.json; empty where there is none."""
    path = data_root().parent / "results" / "reference_lines.json"
    return read_json(path).get(recipe, {}) if path.is_file() else {}


def study_of(recipe: str) -> dict[str, Any] | None:
    """The study of a recipe, None when there is none; CheckpointError for a damaged file."""
    path = results_file(recipe)
    return read_json(path) if path.is_file() else None


def lines_of(
    study: Mapping[str, Any], known: Mapping[str, Any], figure: str, labels: int | None
) -> dict[str, float]:
    """Lines without a model by name, for this figure and number of labels, None = all.

    study: its "references" are for all labels. known: the recipe's part of reference_lines.json,
    "name, labels=N/figure". A figure "way/key" has the lines of "key" where it has none itself.
    """
    found: dict[str, float] = {}
    for wanted in (figure, figure.rpartition("/")[2]):
        by_limit = study.get("references", {})
        for limit in sorted(by_limit, key=int):
            for key, value in by_limit[limit].items():
                name, _, what = key.partition("/")
                if what == wanted:
                    found[name] = value
        if found:
            break
    for key, value in known.items():
        name, _, what = key.partition("/")
        name, _, count = name.partition(", labels=")
        if what == figure and count == ("all" if labels is None else str(labels)):
            found[name] = value["mean"]
    return found
