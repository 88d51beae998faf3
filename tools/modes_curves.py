"""How the figures of fine-tuning move with its length, and how far the goals are.

    python tools/modes_curves.py results/figures/modes_curves.png

A panel for each recipe and number of labels that results/modes holds with two lengths or more.
Nothing is extrapolated, and nothing in it is typed by hand.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from report_modes import GOAL_LABELS, GOAL_LINE, SHOWN, about

from minibeit3.bands import lines_of
from minibeit3.lab.bands import Measured, over_seeds
from minibeit3.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
LOOKS = {"pretrained": ("#0072B2", "o-"), "scratch": ("#E69F00", "s--")}
COLUMNS = 4


@dataclass(frozen=True)
class Curve:
    """One figure by the length of training; starts: "pretrained", "scratch" -> by CPU-seconds."""

    title: str
    figure: str
    goal: float | None
    starts: Mapping[str, list[Measured]]


def main() -> int:
    """1 when no recipe was trained for two lengths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args()
    curves = all_curves(given.results)
    if not curves:
        sys.stderr.write("no recipe in results/modes has two lengths: give study_modes --steps\n")
        return 1
    draw(curves, given.figure)
    return 0


def all_curves(results: Path) -> list[Curve]:
    """The curves of all recipes, in the order of `RECIPES`."""
    lines = results / "reference_lines.json"
    known = json.loads(lines.read_text("utf-8")) if lines.is_file() else {}
    curves = []
    for recipe in RECIPES:
        file = results / "modes" / f"{recipe}.json"
        if file.is_file():
            study = json.loads(file.read_text("utf-8"))
            curves += curves_of(recipe, study, known.get(recipe, {}))
    return curves


def curves_of(recipe: str, study: Mapping[str, Any], known: Mapping[str, Any]) -> list[Curve]:
    """A curve for each number of labels whose pretrained runs have two lengths or more."""
    runs = [run for run in study.get("runs", []) if run["holdout"] is None and not run["blind"]]
    _, goals = about(recipe, study)
    curves = []
    for labels in dict.fromkeys(run["labels"] for run in runs):
        same = [run for run in runs if run["labels"] == labels]
        figures = [*goals, *SHOWN.get(recipe, ()), *(same[0]["figures"] if same else ())]
        figure = next(name for name in figures if name in same[0]["figures"])
        starts = {start: lengths(same, start, figure) for start in LOOKS}
        if len(starts["pretrained"]) < 2:
            continue
        goal = goals.get(figure) if labels == GOAL_LABELS.get(recipe) else None
        goal = lines_of(study, known, figure, labels).get(GOAL_LINE.get(recipe, ""), goal)
        title = recipe + (f", {labels:,} labels" if labels else "")
        curves.append(Curve(title, figure, goal, starts))
    return curves


def lengths(runs: list[Mapping[str, Any]], start: str, figure: str) -> list[Measured]:
    """The figure over the seeds for each number of steps, the shortest first."""
    own = [run for run in runs if run["start"] == start]
    found = [over_seeds(own, figure, steps) for steps in sorted({run["steps"] for run in own})]
    return [value for value in found if value is not None]


def draw(curves: list[Curve], path: Path) -> None:
    """Panels in rows of four: marks are means, lines one standard deviation, dots the goal."""
    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    size = (max(4.0, 2.6 * columns), 2.6 * rows)  # the legend needs four inches
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel, curve in zip(panels.flat, curves, strict=False):
        for start, (colour, mark) in LOOKS.items():
            found = curve.starts[start]
            seconds, means = [v.seconds for v in found], [v.mean for v in found]
            spread = [0.0 if v.sd != v.sd else v.sd for v in found]
            panel.errorbar(seconds, means, spread, fmt=mark, color=colour, capsize=3, label=start)
        if curve.goal is not None:
            panel.axhline(curve.goal, color="#009E73", ls=":", lw=2, label="goal")
        panel.set(xscale="log", ylim=(0, 1.03))
        panel.set_title(f"{curve.title}\n{curve.figure}", fontsize=9)
        seconds = [value.seconds for value in curve.starts["pretrained"]]
        panel.set_xticks(seconds, [f"{value:.0f}" for value in seconds])
        panel.minorticks_off()
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel("on test data")
    figure.supxlabel("CPU-seconds of fine-tuning", fontsize=10)
    names = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(names.values(), names, loc="outside upper center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
