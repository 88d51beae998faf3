"""Do questions about few things teach questions about many?

    python tools/study_few_things.py results/vqa_few_things.json --steps 822 --seeds 1

The recipe scenes-vqa from the shipped tiny: as it is (half of the questions are about at most three
things), with scenes of all sizes alone, and the same at the rate of the other recipes. The test
shows scenes of all sizes. A run that the file holds for the same steps is not done again: several
processes may share the arms.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from minibeit3.data.paths import data_root
from minibeit3.finetune import Job, finetune, prepare
from minibeit3.provenance import provenance, write_results

FEW, ALL, FAST = "half few things", "all sizes", "all sizes, rate 1e-3"
ARMS = (FEW, ALL, FAST)


def main() -> None:
    """Train every arm from every seed; what came out is kept after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=822)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, default=500, help="test questions")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    arms: list[str] = given.arms
    for seed, arm in product(range(given.seeds), arms):
        known = held(given.out, given.steps, given.limit)
        if (arm, seed) in [(run["arm"], run["seed"]) for run in known]:
            continue
        run = one_run(arm, seed, given.steps, given.limit)
        runs = [*held(given.out, given.steps, given.limit), run]  # another process may have added
        write_results(given.out, report(runs, given.steps, given.limit))


def held(path: Path, steps: int, limit: int) -> list[dict[str, Any]]:
    """The runs that the file holds, none where there is no file; ValueError for other runs."""
    if not path.exists():
        return []
    known = json.loads(path.read_text())
    found = known["steps"], known["test_questions"]
    if found != (steps, limit):
        raise ValueError(
            f"{path} holds runs of {found[0]} steps, {found[1]} test questions, not of {steps} and "
            f"{limit}: name another file"
        )
    return known["runs"]


def one_run(arm: str, seed: int, steps: int, limit: int) -> dict[str, Any]:
    """One model: what it cost, and its figures."""
    job, lr = opened(arm, seed)
    plan = replace(job.plan(steps, lr=lr), save_every=0, log_every=steps)
    began = time.process_time()
    with TemporaryDirectory() as folder:
        model, _ = finetune(job, folder, plan, device="cpu")
    spent = time.process_time() - began
    with torch.inference_mode():
        figures = job.recipe.evaluate(model, limit)
    sys.stderr.write(f"{arm}, seed {seed}: {figures['accuracy']:.3f}\n")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    return {"arm": arm, "seed": seed, "cpu_s": round(spent, 1), "figures": rounded}


def opened(arm: str, seed: int) -> tuple[Job, float]:
    """The arm's job, and its learning rate."""
    job = prepare("scenes-vqa", data_root() / "checkpoints" / "tiny", seed=seed)
    if arm != FEW:
        everything = cast(Any, job.recipe.samples).datasets[0]
        job = replace(job, recipe=replace(job.recipe, samples=everything))
    return job, 1e-3 if arm == FAST else job.recipe.plan.lr


def report(runs: list[dict[str, Any]], steps: int, limit: int) -> dict[str, Any]:
    """The file: where it comes from, means over seeds, all runs."""
    summary: dict[str, dict[str, list[float | None]]] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        found = [run["figures"] for run in runs if run["arm"] == arm]
        summary[arm] = {
            name: [
                round(mean(f[name] for f in found), 4),
                round(stdev(f[name] for f in found), 4) if len(found) > 1 else None,
                len(found),
            ]
            for name in found[0]
        }
    return {
        "what": "accuracy of scenes-vqa by what it learns from, from the shipped tiny",
        **provenance("tools/study_few_things.py"),
        "steps": steps,
        "test_questions": limit,
        "mean_sd_n": summary,
        "runs": runs,
    }


if __name__ == "__main__":
    main()
