"""How long must pretraining be to pay? results/study_transfer.json and its figure.

    python tools/study_transfer.py --runs runs/transfer --seeds 3

The preset nano is pretrained for each of `LENGTHS` steps: a quarter on scenes of one thing, the
rest on all scenes, both with whole pictures in pairs, the order that grounds words soonest. Each
model is then fine-tuned by each of `TASKS` for the same few steps, beside fresh weights with the
same steps ("scratch") and fresh weights that train for as many CPU-seconds as pretraining and
fine-tuning took together ("scratch, equal total"; up to `LONGEST_EQUAL` steps of pretraining). The
shipped nano stands at the far end: pretrained once, longer, and at last by the paper's objective.
What is in the file already is skipped: give the same command again to go on.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch

from minibeit3.backbones import preset
from minibeit3.data.paths import data_root
from minibeit3.finetune import finetune, prepare
from minibeit3.precision import pick_dtype
from minibeit3.pretrain import Hiding, pretrain
from minibeit3.provenance import machine, provenance, state
from minibeit3.storage import write_file
from minibeit3.train import TrainConfig
from minibeit3.visual_codes import open_codes

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "study_transfer.json"
FIGURE = ROOT / "results" / "figures" / "transfer.png"
LENGTHS = (100, 300, 1000, 3000)
SHIPPED = data_root() / "checkpoints" / "nano"
LONGEST_EQUAL = 300
ONE, ALL = "scenes-1,glosses", "scenes-1:2,scenes-2:2,scenes:2,glosses"
PLAN = TrainConfig(steps=1, batch_size=48, lr=2e-3, save_every=1000)
# Recipe -> labels, the figure that is compared, its name for people.
TASKS: dict[str, tuple[int | None, str, str]] = {
    "scenes-classes": (200, "top1", "classes, 200 labels"),
    "scenes-retrieval": (None, "image to text@1", "retrieval, R@1"),
    "scenes-vqa": (None, "accuracy", "questions, accuracy"),
    "scenes-captions": (None, "beam 3/true", "captions, true"),
}
STEPS = 200  # of fine-tuning
PRETRAINED, SCRATCH, EQUAL = "pretrained", "scratch", "scratch, equal total"


def main() -> None:
    """Run what is missing, renew summary and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the pretrainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=300, help="test samples")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"runs": []}
    for kind, length, seed, task in grid(given.seeds):
        key = {"kind": kind, "pretraining_steps": length, "task": task, "seed": seed}
        if not any(all(run[k] == v for k, v in key.items()) for run in study["runs"]):
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {key}\n")
            study["runs"].append(key | one_run(key, study["runs"], given))
            keep(study, given.limit)
    keep(study, given.limit)
    draw(study["summary"])


def grid(seeds: int) -> Iterator[tuple[str, int, int, str]]:
    """Kind, steps of pretraining, seed and task; seed by seed, so that a cut study compares."""
    for seed in range(seeds):
        yield from ((SCRATCH, 0, seed, task) for task in TASKS)
        for length in LENGTHS:
            yield from ((PRETRAINED, length, seed, task) for task in TASKS)
            if length <= LONGEST_EQUAL:
                yield from ((EQUAL, length, seed, task) for task in TASKS)
        yield from ((PRETRAINED, shipped()[0], seed, task) for task in TASKS)


def shipped() -> tuple[int, float]:
    """Steps, in batches of `PLAN`'s size, and CPU-seconds of the shipped nano."""
    told = json.loads((SHIPPED / "training.json").read_text("utf-8"))
    plans = [phase["plan"] for phase in told["phases"]]
    samples = sum(plan["steps"] * plan["batch_size"] for plan in plans)
    return samples // PLAN.batch_size, told["cpu_seconds"]


def one_run(key: dict[str, Any], runs: list[dict[str, Any]], given: argparse.Namespace) -> Any:
    """Fine-tune once: the figure and the CPU-seconds."""
    kind, length, seed, task = (key[k] for k in ("kind", "pretraining_steps", "seed", "task"))
    start, spent, steps = None, 0.0, STEPS
    if kind == PRETRAINED:
        start, spent = pretrained(given.runs, length, seed)
    elif kind == EQUAL:  # the seconds of the run it is compared with, at the speed of that run

        def same(run: dict[str, Any]) -> bool:
            return all(run[k] == key[k] for k in key if k != "kind") and run["kind"] == PRETRAINED

        other = next(run for run in runs if same(run))
        total = other["pretraining_cpu_s"] + other["finetuning_cpu_s"]
        steps = math.ceil(total / other["finetuning_cpu_s"] * STEPS)
    labels, figure, _ = TASKS[task]
    dtype = str(pick_dtype(PLAN.dtype, torch.device("cpu"))).removeprefix("torch.")
    job = prepare(task, start, size="nano", labels=labels, seed=seed)
    plan = replace(job.plan(steps), save_every=0, log_every=steps)
    began = time.process_time()
    with TemporaryDirectory() as folder:
        model, _ = finetune(job, folder, plan, device="cpu", muon=True)
    trained = time.process_time() - began
    with torch.inference_mode():
        found = job.recipe.evaluate(model, given.limit)[figure]
    return {
        "finetuning_steps": steps,
        "pretraining_cpu_s": round(spent, 1),
        "finetuning_cpu_s": round(trained, 1),
        "instructions": machine()["instructions"],
        "pretraining_dtype": dtype,
        **state(),
        "figure": figure,
        "value": round(found, 4),
    }


def pretrained(runs: Path, length: int, seed: int) -> tuple[Path, float]:
    """The folder of a model that was pretrained for `length` steps, and its CPU-seconds."""
    if length == shipped()[0]:
        return SHIPPED, shipped()[1]
    codes = open_codes(data_root() / "checkpoints" / "pixels").tokens
    config, start, seconds, folder = replace(preset("nano"), drop_path=0.0), None, 0.0, runs
    for name, data, steps in (("one", ONE, length // 4), ("all", ALL, length - length // 4)):
        folder = runs / f"{length}-{seed}-{name}"
        plan = replace(PLAN, steps=steps, warmup=min(50, steps // 5), seed=seed)
        hiding = Hiding(pair_images=False)
        records = pretrain(
            config, data.split(","), codes, plan, folder, hiding=hiding, muon=True, start=start
        )[1]
        start, seconds = folder, seconds + float(records[-1]["cpu_seconds"])
    return folder, seconds


def keep(study: dict[str, Any], limit: int) -> None:
    """Write the file with its summary, whole or not at all."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in study["runs"]:
        groups.setdefault((run["task"], run["kind"], run["pretraining_steps"]), []).append(run)
    study["summary"] = [
        {
            "task": task,
            "kind": kind,
            "pretraining_steps": length,
            "pretraining_cpu_s": round(mean(run["pretraining_cpu_s"] for run in found), 1),
            "finetuning_cpu_s": round(mean(run["finetuning_cpu_s"] for run in found), 1),
            "figure": found[0]["figure"],
            "mean": round(mean(run["value"] for run in found), 4),
            "sd": round(stdev(run["value"] for run in found), 4) if len(found) > 1 else None,
            "n": len(found),
        }
        for (task, kind, length), found in groups.items()
    ]
    told = {
        "what": "fine-tuned figures of nano by the length of its pretraining, beside fresh weights",
        **provenance("tools/study_transfer.py"),
        "test_samples": limit,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_file(OUT, (json.dumps(told | study, indent=1) + "\n").encode())


def draw(summary: list[dict[str, Any]]) -> None:
    """One panel a task: the figure over the steps of pretraining, seeds as bars."""
    looks = {PRETRAINED: ("#0072B2", "o-"), EQUAL: ("#D55E00", "s--")}
    size = (2.75 * len(TASKS), 2.8)
    figure, panels = plt.subplots(1, len(TASKS), figsize=size, layout="constrained", squeeze=False)
    for ax, (task, (_, _, title)) in zip(panels[0], TASKS.items(), strict=True):
        for kind, (colour, mark) in looks.items():
            rows = [row for row in summary if row["task"] == task and row["kind"] == kind]
            rows.sort(key=lambda row: row["pretraining_steps"])
            x = [row["pretraining_steps"] for row in rows]
            spread = [row["sd"] or 0 for row in rows]
            means = [row["mean"] for row in rows]
            ax.errorbar(x, means, spread, fmt=mark, color=colour, capsize=3, label=kind)
        for row in summary:
            if row["task"] == task and row["kind"] == SCRATCH:
                ax.axhline(row["mean"], color="0.5", ls=":", label=SCRATCH)
        ax.set(xscale="log", xlabel="steps of pretraining", ylim=(0, None))
        ax.set_title(title, fontsize=10)
    panels[0, 0].legend(frameon=False, fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
