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


def study_of(recipe: str) -> dict[str, Any] | None:
    """The study of a recipe, None when there is none; CheckpointError for a damaged file."""
    path = results_file(recipe)
    return read_json(path) if path.is_file() else None
