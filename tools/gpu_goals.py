"""The GPU goals in one command: `python tools/gpu_goals.py`; with --dry-run on a CPU, at toy sizes.

Each work is timed in a process of its own, so that memory peaks are its own and a failure does not
end the others. Results go to results/bench/gpu.json, with the goal beside what was reached. A dry
run proves that the script works and measures nothing: its report has no figures.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minibeit3 import bench_torchscale
from minibeit3.backbones import preset
from minibeit3.bench import contestants, in_turns, table, work_flops
from minibeit3.bench_machine import machine
from minibeit3.info import task_parameters, training_memory
from minibeit3.storage import write_file

PEAK = 989e12  # H200, dense bfloat16
MATMUL = 788e12  # of that, what a large product was measured to reach
GOALS: dict[str, dict[str, Any]] = {
    "giant step, text 64": {"preset": "giant", "batch": 96, "text": 64, "share_of_matmul": 0.60},
    "giant step, text 512": {"preset": "giant", "batch": 56, "text": 512, "share_of_matmul": 0.60},
    "giant step, float8": {"preset": "giant", "batch": 40, "text": 64, "float8": 1.2},
    "large step": {"preset": "large", "batch": 192, "text": 64, "share_of_peak": 0.46},
    "base step": {"preset": "base", "batch": 256, "text": 64, "share_of_peak": 0.41, "peer": 2.5},
    "giant image": {"preset": "giant", "batch": 64, "text": 64, "images_per_second": 300},
    "tiny step": {"preset": "tiny", "batch": 32, "text": 32, "peer": 10.0},
    "small step": {"preset": "small", "batch": 32, "text": 32, "peer": 10.0},
}


def measure(name: str, dry: bool) -> dict[str, Any]:
    """One goal: figures of every contestant, the peak of memory and its prediction."""
    goal = GOALS[name]
    device, work = "cpu" if dry else "cuda", name.split()[1].rstrip(",")
    config, batch, rounds = preset(goal["preset"]), goal["batch"], 5
    if dry:
        config, batch, rounds = replace(preset("tiny"), depth=2, fusion_layers=1), 2, 1
    length = min(goal["text"], config.max_text_length)
    dtype = torch.float32 if dry else torch.bfloat16
    peers = {}
    if "peer" in goal and bench_torchscale.installed():
        peers = {"torchscale": bench_torchscale.torchscale}
    eight = "float8" in goal
    runs = contestants(work, config, batch, length, device, (dtype,), not dry, peers, eight)
    if not dry and goal["preset"] == "giant":  # no weights and moments beside
        runs = {key: run for key, run in runs.items() if "compiled" in key}
    flops = work_flops(config, work, batch, length)
    assert flops is not None
    rows = table(in_turns(runs, rounds, not dry), flops)
    for row in rows:
        speed = row["gflops_per_second"] * 1e9
        row |= {"share_of_peak": speed / PEAK, "share_of_matmul": speed / MATMUL}
        row["samples_per_second"] = (3 if work == "step" else 1) * batch / row["seconds"]
    parameters = task_parameters("pretraining", config, {})
    modes = ("image", "text", "pair")
    kept = sum(training_memory(config, 0, m, length, batch)["activations"] for m in modes)
    memory = {"predicted_bytes": 16 * parameters + kept // 2}
    if not dry:
        memory["peak_bytes"] = torch.cuda.max_memory_allocated()
    return {"goal": goal, "batch": batch, "rows": rows, "memory": memory, "rounds": rounds}


def main() -> None:
    """Measure all goals, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=GOALS, help="measure this one here and print it")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--out", type=Path, default=Path("results/bench/gpu.json"))
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.dry_run)))
        return
    found = {name: tried(name) if options.dry_run else apart(name) for name in GOALS}
    device = "cpu" if options.dry_run else "cuda"
    what = "no GPU figure was measured: toy sizes ran on a CPU" if options.dry_run else "GPU goals"
    report = {"what": what, "dry_run": options.dry_run, "machine": machine(device)}
    report["command"] = shlex.join(["python", "tools/gpu_goals.py", *sys.argv[1:]])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.out, (json.dumps(report | {"goals": found}, indent=1) + "\n").encode())


def tried(name: str) -> dict[str, Any]:
    """Who ran in a dry run; its figures would mislead."""
    found = measure(name, dry=True)
    return {"goal": found["goal"], "got": None, "ran": [row["name"] for row in found["rows"]]}


def apart(name: str) -> dict[str, Any]:
    """`measure` in a process of its own, or the end of what it said when it failed."""
    command = [sys.executable, __file__, "--only", name]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1])
    return {"goal": GOALS[name], "failed": run.stderr[-2000:]}


if __name__ == "__main__":
    main()
