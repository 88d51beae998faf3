"""Fine-tune many times and keep what came out: results/modes/<recipe>.json, one file per recipe.

    python tools/study_modes.py --start data_samples/checkpoints/tiny --runs runs/modes \\
        --recipes scenes-vqa,binding --variants pretrained,scratch,blind-image --seeds 3

One run at a time, each a process of its own, so that its memory is its own and a crash costs one
run. What is in the file already is skipped: give the same command again to go on. A run that was
cut starts anew, so that its CPU seconds are those of a whole run. Failures are listed at the end,
and the exit code is then 1.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from minibeit3.bands import VARIANT, bands, results_file, study_of, variant_of
from minibeit3.finetune import prepare
from minibeit3.provenance import machine, state
from minibeit3.recipes import RECIPES
from minibeit3.storage import write_file

ROOT = Path(__file__).resolve().parents[1]
PILOT = 12  # steps that turn a budget in seconds into steps
KEY = (*VARIANT, "seed")
Key = dict[str, Any]


def main() -> int:
    """Run the grid; 1 when a run failed."""
    given = arguments()
    failed = []
    for recipe in given.recipes.split(","):
        if recipe not in RECIPES:
            failed.append(f"{recipe}: no such recipe, there are {', '.join(sorted(RECIPES))}")
            continue
        try:
            opened = prepare(recipe, None, size=given.size, data=given.data).recipe
            steps = given.steps or budgeted(recipe, given) or opened.plan.steps
            lines = references(recipe, opened, given.limit)
            keep(recipe, {"references": lines, "goals": dict(opened.goals)})
        except (ValueError, OSError, RuntimeError) as error:
            failed.append(f"{recipe}: {error}")
            continue
        for key in grid(given, steps):
            if key not in [{k: run[k] for k in KEY} for run in runs_of(recipe)]:
                try:
                    run = one_run(recipe, key, given)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    failed.append(f"{recipe} {key}: {error}")
                    say(f"failed: {failed[-1]}")
                else:
                    keep(recipe, {"runs": [*runs_of(recipe), run]})
    for line in failed:
        say(f"failed: {line}")
    return int(bool(failed))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, required=True, help="the pretrained model")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the run folders")
    parser.add_argument("--recipes", required=True, help="names, comma between")
    parser.add_argument(
        "--variants", default="pretrained,scratch", help="also blind-image and blind-text"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", default="", help="numbers, comma between; all = no limit")
    parser.add_argument("--holdouts", default="", help="names, comma between; none = no holdout")
    parser.add_argument("--steps", type=int, help="of every run; else the recipe's")
    parser.add_argument("--seconds", type=float, help="CPU seconds per run, turned into steps once")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--size", default="tiny", help="preset of the scratch runs")
    parser.add_argument("--limit", type=int, default=1000, help="samples per evaluated split")
    parser.add_argument("--data", type=Path, help="of recipes that read the user's data")
    parser.add_argument("--timeout", type=float, default=7200, help="wall seconds of one run")
    return parser.parse_args()


def grid(given: argparse.Namespace, steps: int) -> Iterator[Key]:
    """All wanted runs, seed by seed, so that a study that is cut has every variant."""
    labels = [None if n == "all" else int(n) for n in given.labels.split(",") if n] or [None]
    holdouts = [None if n == "none" else n for n in given.holdouts.split(",") if n] or [None]
    variants: list[str] = given.variants.split(",")
    for seed, variant in product(range(given.seeds), variants):
        for few, held in product(labels, holdouts):
            yield {
                "start": "scratch" if variant == "scratch" else "pretrained",
                "labels": few,
                "blind": variant.removeprefix("blind-") if variant.startswith("blind-") else None,
                "holdout": held,
                "steps": steps,
                "limit": given.limit,
                "seed": seed,
            }


def one_run(recipe: str, key: Key, given: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate in a process of its own; RuntimeError with what it said on failure."""
    name = "_".join(f"{v}" for v in (recipe, *key.values()) if v is not None)
    folder = given.runs / name
    shutil.rmtree(folder, ignore_errors=True)
    command = ["finetune", recipe, str(folder)]
    if key["start"] == "scratch":
        command += ["--scratch", "--size", given.size]
    else:
        command += ["--start", str(given.start)]
    options = {k: key[k] for k in ("labels", "blind", "holdout", "steps", "limit", "seed")}
    options |= {"batch-size": given.batch_size, "lr": given.lr, "data": given.data}
    for option, value in options.items():
        command += [f"--{option}", str(value)] if value is not None else []
    say(f"minibeit3 {shlex.join(command)}")
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "minibeit3", *command],
        cwd=ROOT,
        timeout=given.timeout,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        told = process.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"exit code {process.returncode}: {told[-1][-500:]}")
    for checkpoint in folder.glob("step-*.pt"):
        checkpoint.unlink()  # the finished model is in folder/model
    report = json.loads((folder / "evaluation.json").read_text())
    figures = {name: round(value, 5) for name, value in report.pop("figures").items()}
    told = ("batch_size", "lr", "last_loss", "training_cpu_s", "evaluation_cpu_s", "peak_mb")
    return {
        **key,
        **{name: report[name] for name in told},
        "wall_s": round(time.monotonic() - began, 1),
        "instructions": machine()["instructions"],
        **state(),
        "command": f"minibeit3 {shlex.join(command)}",
        "figures": figures,
    }


def budgeted(recipe: str, given: argparse.Namespace) -> int | None:
    """The steps that --seconds is worth, by a short run the first time and from the file later."""
    if not given.seconds:
        return None
    budgets = (study_of(recipe) or {}).get("budgets", {})
    asked = f"{given.seconds:g} CPU seconds"
    if asked not in budgets:
        pilot = {"start": "scratch", "labels": None, "blind": None, "holdout": None}
        run = one_run(recipe, {**pilot, "steps": PILOT, "limit": 4, "seed": 0}, given)
        budgets[asked] = max(10, round(given.seconds / run["training_cpu_s"] * PILOT))
        keep(recipe, {"budgets": budgets})
    return budgets[asked]


def references(recipe: str, opened: Any, limit: int) -> dict[str, Any]:
    """The lines without a model, computed once per limit."""
    known = (study_of(recipe) or {}).get("references", {})
    if str(limit) not in known:
        say(f"reference lines of {recipe}")
        lines = opened.references(limit)
        known[str(limit)] = {name: round(value, 5) for name, value in lines.items()}
    return known


def runs_of(recipe: str) -> list[dict[str, Any]]:
    """The runs that are recorded."""
    return (study_of(recipe) or {}).get("runs", [])


def keep(recipe: str, news: dict[str, Any]) -> None:
    """Add to the recipe's file and renew its summary; whole or not at all."""
    study = {
        "what": f"fine-tuning by the recipe {recipe}: figures on test data over seeds",
        "machine": machine(),
        "command": f"python tools/study_modes.py {shlex.join(sys.argv[1:])}",
        **{k: v for k, v in (study_of(recipe) or {}).items() if k not in ("machine", "command")},
        **news,
    }
    summary = []
    for variant in dict.fromkeys(variant_of(run) for run in study.get("runs", [])):
        found = bands(study["runs"], variant)
        figures = {name: [round(b.mean, 4), round(b.sd, 4), b.n] for name, b in found.items()}
        summary.append(dict(zip(VARIANT, variant, strict=True)) | {"mean_sd_n": figures})
    path = results_file(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(study | {"summary": summary}, indent=1) + "\n").encode())


def say(line: str) -> None:
    """One line on stderr, at once."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
