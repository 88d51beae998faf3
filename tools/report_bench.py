"""Draw results/bench/cpu.json: the goals as a Markdown table, the growth of costs as a figure.

    python tools/report_bench.py

Prints the tables and writes results/figures/bench_growth.png. Every number comes from the file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito


def goal_table(goals: list[dict[str, Any]]) -> str:
    """One line per goal: what was compared, the goal, what was got, by the bare bound too."""
    lines = ["| work | compared | goal | got | bound | met |", "|---|---|---|---|---|---|"]
    for line in goals:
        compared = f"{line['mine']} to {line['other']}"
        if line["memory"]:
            compared, sign = f"memory of {compared}", "≤"
        else:
            sign = "≥"
        if line["got"] is None:
            got, met = "not measured", ""
        else:
            got, met = f"{line['got']:.2f}", "yes" if line["met"] else "no"
        bound = "" if line["bound"] is None else f"{line['bound']:.2f}"
        name = line["set"].removesuffix(" memory")
        lines.append(
            f"| {name} | {compared} | {sign} {line['goal']:.2f} | {got} | {bound} | {met} |"
        )
    return "\n".join(lines)


def speed_table(sets: dict[str, Any]) -> str:
    """One line per contestant of every timed set: seconds and GFLOP/s beside large products'."""
    lines = ["| work | who | s | GFLOP/s | of a large product's |", "|---|---|---|---|---|"]
    for name, found in sets.items():
        for row in found.get("rows", ()):
            if "seconds" not in row or name.startswith("automatic"):
                continue
            speed = f"{row['gflops_per_second']:.0f}" if "gflops_per_second" in row else ""
            share = f"{row['share_of_matmul']:.0%}" if "share_of_matmul" in row else ""
            lines.append(f"| {name} | {row['name']} | {row['seconds']:.3f} | {speed} | {share} |")
    return "\n".join(lines)


def growth_figure(found: dict[str, Any]) -> Figure:
    """Cost against size, both as multiples of the smallest, on logarithmic axes."""
    figure, panel = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    for colour, row in zip(COLOURS, found["growth"], strict=True):
        size, seconds = ([v / row[k][0] for v in row[k]] for k in ("sizes", "seconds"))
        label = f"{row['grows']}, exponent {row['exponent']:.2f}"
        panel.plot(size, seconds, "o-", color=colour, label=label)
    panel.set(xscale="log", yscale="log", xlabel="times as large", ylabel="times the CPU time")
    for ticks, where in (((1, 2, 4), panel.set_xticks), ((1, 2, 4, 8), panel.set_yticks)):
        where(ticks, labels=[str(tick) for tick in ticks])
        where([], minor=True)
    panel.set_title(f"{found['preset']} {found['work']}, batch {found['batch']} of each kind")
    panel.legend(frameon=False)
    return figure


def main() -> None:
    """Print the tables, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=ROOT / "results/bench/cpu.json")
    parser.add_argument("--figures", type=Path, default=ROOT / "results/figures")
    options = parser.parse_args()
    report = json.loads(options.file.read_text())
    print(goal_table(report["goals"]), speed_table(report["sets"]), sep="\n\n")
    if "growth" in report["sets"]:
        growth_figure(report["sets"]["growth"]).savefig(
            options.figures / "bench_growth.png", dpi=110
        )


if __name__ == "__main__":
    main()
