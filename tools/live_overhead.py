"""What watching costs: `python tools/live_overhead.py results/bench/live.json`

The live training of notebook 04, by its own cells: one training loop that stops at each logged step
to score the model, draw the curves and make the picture as the kernel does. Processor time between
two logged steps is the bare loop's, the time at a logged step is the watching's, so both met the
same machine in turns. Sending the picture to the browser is not in it.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from minibeit3.batches import generator_of
from minibeit3.bench_machine import machine
from minibeit3.lab.figures import figure_both
from minibeit3.objective import MaskedDataModel
from minibeit3.storage import write_file

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks/04_masked_data_modelling.ipynb"
CELLS = (  # what each cell that is needed defines, in their order
    "session = lab.start(",
    "def batches(",
    "batch = batches(",
    "codes = PixelCodes(",
    "ceiling = word_ceiling(",
    "def pretrain(",
    "def watch(",
    "def drawing(",
)
GOAL, ROUNDS = 1.05, 6


class Rendered:
    """In the place of a notebook's display: makes what the kernel would send."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the newest picture

    def update(self, figure: Any) -> None:
        """Both forms of the picture."""
        began = time.process_time()
        figure_both(figure)
        self.seconds = time.process_time() - began


def main() -> None:
    """Write the results file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    given = parser.parse_args()
    os.environ["MINIBEIT3_PROFILE"] = "laptop"
    torch.set_num_threads(1)
    names = notebook_names()
    every = names["plan"].log_every
    rows = watched(names, every)
    overhead = median((row["bare"] + row["watching"]) / row["bare"] for row in rows)
    result = {
        "what": "notebook 04, live training over the bare loop: processor time, median of parts",
        "machine": machine("cpu"),
        "command": f"python tools/live_overhead.py {given.results}",
        "steps_a_part": every,
        "rows": rows,
        "overhead": overhead,
        "goal": GOAL,
        "met": overhead <= GOAL,
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    write_file(given.results, (json.dumps(result, indent=1) + "\n").encode())


def notebook_names() -> dict[str, Any]:
    """What the needed cells of the notebook define."""
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    names: dict[str, Any] = {
        "np": np,
        "plt": plt,
        "torch": torch,
        "MaskedDataModel": MaskedDataModel,
    }
    for start in CELLS:
        (cell,) = (cell for cell in cells if f"\n{start}" in f"\n{cell}")
        exec(cell, names)
    return names


def watched(names: dict[str, Any], every: int) -> list[dict[str, float]]:
    """CPU-seconds of each part: of its steps, and of watching at its end."""
    rows: list[dict[str, float]] = []
    names["plan"] = replace(names["plan"], steps=(ROUNDS + 1) * every)
    watch: Callable[..., None] = names["watch"]([], shown := Rendered())
    left = 0.0

    def on_log(model: Any, record: Any) -> None:
        nonlocal left
        came = time.process_time()
        watch(model, record)
        went = time.process_time()
        row = {"bare": came - left, "watching": went - came, "of_it_picture": shown.seconds}
        rows.append({"step": record["step"]} | row)
        left = went

    backbone = names["build_backbone"](names["nano"], generator_of(0))
    names["pretrain"](backbone, names["Hiding"](), 1.0, on_log)
    return [row for row in rows if row["step"] % every == 0][1:]  # the first part warms up


if __name__ == "__main__":
    main()
