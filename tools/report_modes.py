"""What one checkpoint does in five modes: a Markdown table and a figure from results/modes.

    python tools/report_modes.py --readme README.md --figure results/figures/modes.png

The table replaces what stands in the README between `<!-- modes -->` and `<!-- /modes -->`; without
--readme it is printed. Recipes without runs are left out. Nothing in it is typed by hand.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from minibeit3 import preset
from minibeit3.bands import lines_of
from minibeit3.lab.bands import Measured, over_seeds
from minibeit3.recipe import Setup
from minibeit3.recipes import RECIPES, open_recipe
from minibeit3.storage import write_file
from minibeit3.text_tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- modes -->", "<!-- /modes -->"
COLUMNS = (
    *("mode", "task", "figure", "pretrained", "scratch", "blind controls"),
    *("best line without a model", "goal", "met"),
)
MODES = ("vision", "language", "fusion", "dual", "seq2seq")
# The figures of recipes that have no goals of their own, and more than the goals of others.
SHOWN = {
    "binding-dual": ("group",),
    "emoji-classes": ("far/top1", "concept/top1"),
    "emoji-retrieval": ("far/image to text@1", "far/text to image@1", "concept/image to text@1"),
    "scenes-captions": ("beam 3/true", "beam 3/exact", "greedy/exact"),
}
GOAL_LABELS = {"glosses": 4000}  # the goal is for that many labels
GOAL_LINE = {"emoji-classes": "Lite0, linear"}  # the goal is to beat this line
NOTE = (
    "Mean ± standard deviation (seeds) on test data. Scratch: the same steps from fresh weights. "
    "Blind controls never see that modality. Lines: what words, pixels or counts give without a "
    "model of ours. Numbers: `results/modes`, by `tools/study_modes.py`."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one task; `line` is (name, value) of the best line without a model."""

    mode: str
    task: str
    figure: str
    pretrained: Measured
    scratch: Measured | None
    blind: Mapping[str, Measured]
    line: tuple[str, float] | None
    goal: float | None

    @property
    def met(self) -> str:
        """Whether the mean over the seeds reaches the goal."""
        return "" if self.goal is None else "yes" if self.pretrained.mean >= self.goal else "no"


def main() -> int:
    """1 when the README has no place for the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--readme", type=Path, help="to write the table into")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    given = parser.parse_args()
    rows = all_rows(given.results)
    if rows and given.figure:
        draw(rows, given.figure)
    if given.readme is None:
        sys.stdout.write(table(rows) + "\n")
        return 0
    text = given.readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        sys.stderr.write(f"{given.readme} lacks the lines {BEGIN} and {END}: add them once each\n")
        return 1
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    write_file(given.readme, f"{before}{BEGIN}\n{table(rows)}\n{END}{after}".encode())
    return 0


def all_rows(results: Path) -> list[Row]:
    """The rows of every recipe that has runs, mode by mode in the paper's order."""
    lines = results / "reference_lines.json"
    known = json.loads(lines.read_text("utf-8")) if lines.is_file() else {}
    rows: list[Row] = []
    for recipe in RECIPES:
        file = results / "modes" / f"{recipe}.json"
        if file.is_file():
            rows += rows_of(recipe, json.loads(file.read_text("utf-8")), known.get(recipe, {}))
    return sorted(rows, key=lambda row: MODES.index(row.mode))


def rows_of(recipe: str, study: Mapping[str, Any], known: Mapping[str, Any]) -> list[Row]:
    """Rows of one study: one for each number of labels, length and figure that is shown."""
    runs = [run for run in study.get("runs", []) if run["holdout"] is None]
    first = [run for run in runs if run["start"] == "pretrained" and run["blind"] is None]
    if not first:
        return []
    mode, goals = about(recipe, study)
    shown = tuple(dict.fromkeys([*goals, *SHOWN.get(recipe, ())])) or tuple(first[0]["figures"])[:2]
    rows = []
    for labels in dict.fromkeys(run["labels"] for run in first):
        same = [run for run in runs if run["labels"] == labels]
        told = lengths(same)
        for length, figure in product(told, shown):
            found = by_variant(same, figure, length)
            if "pretrained" not in found:
                continue
            lines = lines_of(study, known, figure, labels)
            goal = goals.get(figure) if labels == GOAL_LABELS.get(recipe) else None
            counts = [f"{labels:,} labels"] if labels else []
            counts += [f"{length:,} steps"] if not labels or len(told) > 1 else []
            counts += fine_tuned_starts(run for run in same if run["steps"] == length)
            rows.append(
                Row(
                    mode=mode,
                    task=", ".join([recipe, *counts]),
                    figure=figure,
                    pretrained=found.pop("pretrained"),
                    scratch=found.pop("scratch", None),
                    blind=found,
                    line=max(lines.items(), key=lambda item: item[1], default=None),
                    goal=lines.get(GOAL_LINE.get(recipe, ""), goal),
                )
            )
    return rows


def lengths(runs: Iterable[Mapping[str, Any]]) -> list[int]:
    """Steps of the longest pretrained runs, before them the most that have scratch beside them."""
    by_start = {
        start: {run["steps"] for run in runs if run["start"] == start and run["blind"] is None}
        for start in ("pretrained", "scratch")
    }
    compared = by_start["pretrained"] & by_start["scratch"]
    return sorted({max(by_start["pretrained"]), *sorted(compared)[-1:]})


def fine_tuned_starts(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """ "from NAME" for each fine-tuned model that runs began with; nothing for the pretrained."""
    words = (shlex.split(run.get("command", "")) for run in runs)
    starts = (Path(w[w.index("--start") + 1]) for w in words if "--start" in w)
    return [f"from {name}" for name in dict.fromkeys(s.name for s in starts if "modes" in s.parts)]


def by_variant(runs: Iterable[Mapping[str, Any]], figure: str, steps: int) -> dict[str, Measured]:
    """Of runs with so many steps: "pretrained", "scratch", "no image" ... -> figure.

    Runs of other lengths are not compared.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if figure in run["figures"]:
            name = f"no {run['blind']}" if run["blind"] else str(run["start"])
            kinds.setdefault(name, []).append(run)
    found = {name: over_seeds(same, figure, steps) for name, same in kinds.items()}
    return {name: value for name, value in found.items() if value is not None}


def about(recipe: str, study: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    """Mode and goals of a recipe; one whose data are not here is known by its file alone."""
    try:
        setup = Setup(config=preset("tiny"), tokenizer=TextTokenizer.lab())
        opened = open_recipe(recipe, setup)
        return opened.mode, opened.goals
    except (ValueError, OSError):
        return RECIPES[recipe].partition(":")[0], study.get("goals", {})


def table(rows: list[Row]) -> str:
    """The Markdown table, or a sentence when there is nothing to show."""
    if not rows:
        return "No recipe has been studied yet: `tools/study_modes.py` does it."
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        line = f"{row.line[1]:.3f} ({row.line[0]})" if row.line else ""
        blind = ", ".join(f"{name} {told(value)}" for name, value in sorted(row.blind.items()))
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        cells = (row.mode, row.task, row.figure, told(row.pretrained), told(row.scratch))
        lines.append(f"| {' | '.join((*cells, blind, line, goal, row.met))} |")
    return "\n".join([*lines, "", NOTE])


def told(value: Measured | None) -> str:
    """Mean ± sd (seeds)."""
    if value is None:
        return ""
    spread = "" if value.sd != value.sd else f" ± {value.sd:.3f}"
    return f"{value.mean:.3f}{spread} ({value.n})"


def draw(rows: list[Row], path: Path) -> None:
    """One line of marks per figure: shapes and Okabe and Ito's colours tell the kinds apart."""
    rows = [row for row in rows if row.pretrained.mean <= 1]  # CIDEr has another scale
    height = 1.3 + 0.32 * len(rows)
    figure, panel = plt.subplots(figsize=(8, height), layout="constrained")
    for place, row in enumerate(rows):
        blind = [value for _, value in sorted(row.blind.items())]
        marks = [
            ("pretrained", row.pretrained, "o", "#0072B2"),
            ("scratch", row.scratch, "s", "#E69F00"),
        ]
        marks += [("blind control", value, "v", "#CC79A7") for value in blind]
        for _, value, shape, colour in reversed(marks):
            if value is not None:
                sd = value.sd if value.sd == value.sd else 0.0
                panel.errorbar(value.mean, place, xerr=sd, fmt=shape, ms=7, color=colour, capsize=3)
        if row.line:
            panel.plot(row.line[1], place, marker="|", ms=13, mew=2.5, color="black")
        if row.goal is not None:
            panel.plot(row.goal, place, marker="D", ms=9, mfc="none", mew=1.5, color="#009E73")
        panel.axhline(place, color="0.9", lw=0.8, zorder=0)
    short = [
        f"{re.sub(', [0-9,]+ steps(, from .*)?$', '', row.task)}: {row.figure}" for row in rows
    ]
    twice = {label for label in short if short.count(label) > 1}  # told apart by their steps
    labels = [
        f"{row.task}: {row.figure}" if label in twice else label
        for row, label in zip(rows, short, strict=True)
    ]
    panel.set_yticks(range(len(rows)), labels, fontsize=10)
    panel.set(xlim=(-0.02, 1.03), ylim=(len(rows) - 0.4, -0.6))
    panel.set_xlabel("on test data, mean ± sd over seeds")
    kinds = {
        "pretrained": ("o", "#0072B2", "#0072B2"),
        "scratch": ("s", "#E69F00", "#E69F00"),
        "blind control": ("v", "#CC79A7", "#CC79A7"),
        "best line without a model": ("|", "black", "black"),
        "goal": ("D", "#009E73", "none"),
    }
    for name, (shape, colour, fill) in kinds.items():
        panel.plot([], [], shape, color=colour, mfc=fill, ms=9, mew=1.5, label=name)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
