"""Draw the learning curves and the probes of a pretraining run as PNG files.

    python tools/report_pretraining.py results/NAME.json RUN_FOLDER FIGURES

Writes FIGURES/NAME_{curves,words,classes,codes}.png. Every number comes from the
results file of `python -m minibeit3.probes` and from the run's metrics.jsonl (of a shipped model,
metrics-1.jsonl and on, one for each run behind it).
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from minibeit3.runlog import Record, read_metrics

# Okabe and Ito's colours: distinct for colour-blind readers too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STREAMS = {
    "text": "words of texts alone",
    "pair_text": "words of pairs",
    "image": "codes of images alone",
    "pair_image": "codes of pairs",
}
Scores = dict[str, Any]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, at most `window` together."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)


def records_of(run: Path) -> tuple[list[Record], list[int]]:
    """The records of a run, or of all runs behind a shipped model, and where each run began."""
    logs = sorted(run.glob("metrics-*.jsonl"), key=lambda log: int(log.stem.split("-")[1]))
    if not logs:
        return read_metrics(run), []
    records: list[Record] = []
    begins: list[int] = []
    for log in logs:
        start = int(records[-1]["step"]) if records else 0
        begins.append(start)
        for line in log.read_text("utf-8").splitlines():
            record = json.loads(line)
            records.append(record | {"step": start + record["step"]})
    return records, begins[1:]


def curves(records: list[Record], begins: list[int], path: Path) -> None:
    """Loss and accuracy of the four streams over the steps; grey lines where a run began anew."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    window = max(1, len(records) // 30)
    for panel, what in zip(panels, ("loss", "accuracy"), strict=True):
        for colour, (stream, label) in zip(COLOURS, STREAMS.items(), strict=False):
            for low, high in pairwise([0, *begins, records[-1]["step"] + 1]):
                told = [r for r in records if low <= r["step"] < high]
                told = [r for r in told if r[f"{stream}_loss"]]  # 0 where nothing was hidden
                if not told:
                    continue
                steps = [record["step"] for record in told]
                values = np.array([record[f"{stream}_{what}"] for record in told])
                panel.plot(steps, values, color=colour, alpha=0.15)
                panel.plot(steps, smooth(values, min(window, len(told))), color=colour, label=label)
                label = None  # once in the legend
        for begin in begins:
            panel.axvline(begin, color="0.8", lw=1, zorder=0)
        panel.set(xlabel="step", ylabel=f"{what} on training batches", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=4, loc="outside lower center")
    save(figure, path)


def bars(groups: dict[str, Scores], names: list[str], title: str, path: Path) -> None:
    """One group of bars with 95 % intervals per split; a score that a split lacks is left out."""
    figure, panel = plt.subplots(
        figsize=(2.5 + 0.13 * len(groups) * len(names), 4), layout="constrained"
    )
    width = 0.8 / len(names)
    for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        at = [i for i, group in enumerate(groups.values()) if name in group]
        found = [group[name] for group in groups.values() if name in group]
        height = np.array([score["accuracy"] for score in found])
        low = height - [score["low"] for score in found]
        high = [score["high"] for score in found] - height
        x = np.array(at) + (place - (len(names) - 1) / 2) * width
        panel.bar(x, height, width, color=colour, label=name.replace("_", " "))
        # A mean lies inside its bootstrap interval up to rounding.
        panel.errorbar(x, height, np.maximum([low, high], 0), fmt="none", ecolor="black", lw=0.8)
    panel.set(ylabel="accuracy at hidden places", ylim=(0, 1.12), title=title)
    panel.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right")
    panel.legend(frameon=False, ncols=len(names), loc="upper center", fontsize="small")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the PNG without the version that matplotlib puts into it, so that it is repeatable."""
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def word_groups(words: dict[str, Scores], split: str) -> dict[str, Scores]:
    """Word class -> score by picture, of one split."""
    classes = words[split]["right"]
    return {name: {kind: scores[name] for kind, scores in words[split].items()} for name in classes}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("figures", type=Path)
    given = parser.parse_args()
    result, name = json.loads(given.results.read_text()), given.results.stem
    given.figures.mkdir(parents=True, exist_ok=True)
    curves(*records_of(given.run), given.figures / f"{name}_curves.png")
    words, kinds = result["words"], ["right", "shuffled", "blank", "none", "seen", "blind"]
    told = "Masked words: picture right, shuffled, blank, none; best possible seen and blind"
    splits = {
        split: {kind: scores["all"] for kind, scores in found.items()}
        for split, found in words.items()
    }
    bars(splits, kinds, told, given.figures / f"{name}_words.png")
    by_class = word_groups(words, "scenes/test")
    bars(by_class, kinds, told + ", scenes/test", given.figures / f"{name}_classes.png")
    lines = ["right", "shuffled", "none", "nearest_visible", "global_mode"]
    title = "Masked codes: text right, shuffled, none; rules without a model"
    bars(result["codes"], lines, title, given.figures / f"{name}_codes.png")


if __name__ == "__main__":
    main()
