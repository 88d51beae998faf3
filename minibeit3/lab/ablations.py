"""The study of pretraining as rows to compare: which differences exceed the noise of the seeds.

    study = read_study()
    rows = compared(study, "gain/words/colour", ["random patches", "pair text 15%"])
    print(told(rows, {"random patches": "below"}))

The rule is Student's: two arms differ where the 95% interval of the difference of their means,
from the spread of their seeds, leaves zero out.
"""

from collections.abc import Mapping, Sequence
from math import inf, nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from minibeit3.data.paths import data_root
from minibeit3.lab.bands import Verdict
from minibeit3.storage import read_json

T95 = (inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""By degrees of freedom: within how many standard errors of the truth 95 of 100 means lie."""
BASE = "base"
DTYPE = "float32"
"""The base once more, in the dtype in which a part of the other arms ran."""
ANY_BUDGET = ("budget", "random weights")
WORDS: tuple[Verdict, ...] = ("above", "within noise", "below")


class Compared(NamedTuple):
    """One arm beside the base: difference of the means and its margin, inf for single seeds."""

    arm: str
    values: tuple[float, ...]
    difference: float
    margin: float

    @property
    def verdict(self) -> Verdict:
        """How the arm stands to the base; "unknown" while there is no margin."""
        if self.margin == inf:
            return "unknown"
        if abs(self.difference) <= self.margin:
            return "within noise"
        return "above" if self.difference > 0 else "below"


def read_study(path: Path | None = None) -> dict[str, Any]:
    """The file of `tools/study_pretraining.py`, or one without runs where there is none yet.

    CheckpointError for a damaged file.
    """
    path = path or data_root().parent / "results" / "study_pretraining.json"
    return read_json(path) if path.is_file() else {"runs": [], "references": {}}


def runs_of(study: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    """The runs of an arm at the study's budget; of arms that are budgets, all."""
    steps = study.get("budget", {}).get("steps")
    runs = [run for run in study["runs"] if run["arm"] == arm]
    return runs if arm.startswith(ANY_BUDGET) else [r for r in runs if r["steps"] == steps]


def values(study: Mapping[str, Any], arm: str, figure: str) -> tuple[float, ...]:
    """The figure by seed; empty for an arm that did not run or has no such figure."""
    runs = sorted(runs_of(study, arm), key=lambda run: run["seed"])
    return tuple(run["figures"][figure] for run in runs if figure in run["figures"])


def seed_margin(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(difference, margin) of two arms, one value per seed: mean of `second` less that of `first`.

    The 95% interval is difference - margin to difference + margin. Both arms are taken to spread
    alike, their variances are pooled. One seed each: the margin is inf.
    """
    free = len(first) + len(second) - 2
    difference = mean(second) - mean(first)
    if free < 1:
        return difference, inf
    squares = sum((len(v) - 1) * stdev(v) ** 2 for v in (first, second) if len(v) > 1)
    error = sqrt(squares / free * (1 / len(first) + 1 / len(second)))
    return difference, T95[min(free, len(T95) - 1)] * error


def compared(study: Mapping[str, Any], figure: str, arms: Sequence[str]) -> list[Compared]:
    """The arms beside the base; those without runs, or without this figure, are left out.

    An arm that ran in float32 too stands beside the base of both dtypes, else a difference between
    dtypes would pass for the arm's.
    """
    rows = []
    for arm in arms:
        own, base = values(study, arm, figure), values(study, BASE, figure)
        if arm != DTYPE and any(run.get("dtype") == DTYPE for run in runs_of(study, arm)):
            base += values(study, DTYPE, figure)
        if own and base:
            rows.append(Compared(arm, own, *seed_margin(base, own)))
    return rows


def told(rows: Sequence[Compared], predicted: Mapping[str, str] | None = None) -> str:
    """A line per arm: difference in points, verdict, how a prediction did; arms that did not run.

    ValueError for a prediction that is not "above", "within noise", "below" or "?".
    """
    predicted = predicted or {}
    if odd := {word for word in predicted.values() if word not in (*WORDS, "?")}:
        raise ValueError(f"predictions {sorted(odd)}: say one of {', '.join(WORDS)}, or '?'")
    lines = []
    for row in rows:
        margin = "no margin" if row.margin == inf else f"± {100 * row.margin:.0f}"
        line = f"{row.arm:22} {100 * row.difference:+4.0f} points {margin:9} {row.verdict}"
        if (said := predicted.get(row.arm, "?")) != "?":
            line += f"; you said {said}" + (": right" if said == row.verdict else "")
        lines.append(line)
    compared_arms = {row.arm for row in rows}
    lines += [f"{arm:22} did not run" for arm in predicted if arm not in compared_arms]
    return "\n".join(lines) or "no runs of these arms yet: see tools/study_pretraining.py"


def forest(
    ax: Axes, study: Mapping[str, Any], figure: str, rows: Sequence[Compared], title: str
) -> None:
    """Draw the base and the arms: a dot per seed, a line at the mean, grey = within noise of base.

    The grey band reaches from the lowest to the highest seed of the base.
    """
    base = values(study, BASE, figure)
    lines = [(BASE, base, "base")] if base else []
    lines += [(row.arm, row.values, row.verdict) for row in rows]
    looks = {"base": "#000000", "above": "#0072B2", "below": "#D55E00"}
    marks = {"base": "o", "above": "^", "below": "v"}
    for y, (_, seeds, verdict) in enumerate(lines):
        colour = looks.get(verdict, "#777777")
        points = [100 * value for value in seeds]
        ax.plot(points, [y] * len(points), marks.get(verdict, "o"), color=colour, markersize=5)
        ax.vlines(mean(points), y - 0.3, y + 0.3, color=colour, linewidth=2)
    if base:
        ax.axvspan(100 * min(base), 100 * max(base), color="#DDDDDD", zorder=0)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(range(len(lines)), [arm for arm, _, _ in lines])
    ax.set(title=title, ylim=(len(lines) - 0.4, -0.6))


def found_at(curve: Sequence[Sequence[float]], margin: float = 0.15) -> float:
    """The first step from which the right picture stays ahead by the margin; nan = never."""
    ahead = [right - other > margin for _, right, other in curve]
    last = max((at for at, yes in enumerate(ahead) if not yes), default=-1)
    return curve[last + 1][0] if last + 1 < len(curve) else nan
