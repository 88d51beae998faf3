"""The CPU goals in one command: `python tools/cpu_goals.py`; `--only SET` repeats one set.

Each set is timed in a process of its own and kept in results/bench/cpu.json at once. A goal
compares two contestants of one set, so both met the same machine in the same minute. torchscale,
timm, torchvision and transformers (installed with --no-deps) must be there, or their goals stay
open.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minibeit3 import bench_torchscale
from minibeit3.backbones import preset
from minibeit3.bench import Peer, contestants, in_turns, table, work_flops
from minibeit3.bench_growth import growth
from minibeit3.bench_machine import ceilings, machine, peak_bytes
from minibeit3.bench_peers import installed
from minibeit3.precision import bfloat16_pays
from minibeit3.storage import write_file

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results/bench/cpu.json"
FOUR = {"depth": 4, "fusion_layers": 1}  # of base's layers: all cost the same, building them too
BOTH = ("float32", "bfloat16")
# preset, work, batch, text; rounds, types, changes of the config; memory = no times.
SETS: dict[str, dict[str, Any]] = {
    "tiny step": {"preset": "tiny", "work": "step", "batch": 32, "text": 32},
    "tiny step, large vocabularies": {
        "preset": "tiny",
        "work": "step",
        "batch": 16,
        "text": 32,
        "types": BOTH[:1],
        "changes": {"vocab_size": 64010, "visual_vocab_size": 8192},
    },
    "small step": {"preset": "small", "work": "step", "batch": 4, "text": 32},
    "base pair": {"preset": "base", "work": "pair", "batch": 1, "text": 64},
    "base image, 4 layers": {
        "preset": "base",
        "work": "image",
        "batch": 2,
        "text": 64,
        "changes": FOUR,
    },
    "base text, 4 layers": {
        "preset": "base",
        "work": "text",
        "batch": 4,
        "text": 64,
        "changes": FOUR,
    },
    "base gradient, 4 layers": {
        "preset": "base",
        "work": "gradient",
        "batch": 1,
        "text": 64,
        "changes": FOUR,
        "types": BOTH[1:],
        "rounds": 2,
    },
    "tiny caption": {
        "preset": "tiny",
        "work": "caption",
        "batch": 8,
        "text": 32,
        "types": BOTH[:1],
    },
    "base caption, 4 layers": {
        "preset": "base",
        "work": "caption",
        "batch": 1,
        "text": 32,
        "changes": FOUR,
        "types": BOTH[:1],
        "rounds": 3,
    },
    "480 px pair memory": {
        "preset": "base",
        "work": "pair",
        "batch": 1,
        "text": 64,
        "changes": {"image_size": 480, "vocab_size": 4000},
        "types": BOTH[:1],
        "memory": True,
    },
    "tiny step memory": {
        "preset": "tiny",
        "work": "step",
        "batch": 64,
        "text": 32,
        "memory": True,
    },
}
# Instruction sets that torch and oneDNN are held to, from outside, for the automatic type.
CAPS = {
    "all": {},
    "AVX-512 without bfloat16": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
# In words: what was done for a set's goals, and what was tried and not taken.
STREAMS = "one contiguous tensor per modality, joined for attention only"
STEP = (
    f"{STREAMS}; images, pairs and texts in one pass; heads and the last block at hidden places "
    "only; attention as two products in bfloat16 and fused in float32; fused AdamW. Not taken: "
    "fused attention in bfloat16 (slower with its backward pass), compiled code (slower on CPUs)"
)
CAPTION = (
    "the image is encoded once per caption and not once per beam; beams share its keys and values; "
    "few rows read a large matrix once (oneDNN). Not taken: a shorter last layer for words"
)
FORWARD = f"{STREAMS}; queries, keys and values by one product; fused attention"
TRIED = {
    "step": STEP,
    "gradient": STEP,
    "caption": CAPTION,
    "memory": "fused attention keeps no scores; two products in bfloat16 keep them, in float32",
    "automatic": "a trial of matrix products in both types decides; instructions alone do not",
}
# Set, mine, other, least times as fast; for memory the largest share. "auto" is what auto picks.
GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("tiny step", "minibeit3 fp32", "torchscale fp32", 1.5),
    ("tiny step", "minibeit3 fp32", "bound fp32", 0.85),
    ("tiny step", "minibeit3 auto", "torchscale fp32", 3.0),
    ("tiny step", "minibeit3 auto", "torchscale bf16", 1.8),
    ("tiny step", "minibeit3 bf16", "bound bf16", 0.60),
    ("tiny step, large vocabularies", "minibeit3 fp32", "torchscale, all places fp32", 2.2),
    ("base pair", "minibeit3 fp32", "torchscale fp32", 1.15),
    ("base pair", "minibeit3 bf16", "torchscale bf16", 1.55),
    ("base pair", "minibeit3 bf16", "bound bf16", 0.78),
    ("base image, 4 layers", "minibeit3 fp32", "timm BEiT-3 fp32", 1.05),
    ("base image, 4 layers", "minibeit3 bf16", "timm BEiT-3 bf16", 1.05),
    ("base text, 4 layers", "minibeit3 fp32", "transformers BERT fp32", 1.0),
    ("base text, 4 layers", "minibeit3 bf16", "transformers BERT bf16", 1.0),
    ("base gradient, 4 layers", "minibeit3 bf16", "torchscale bf16", 1.5),
    ("base gradient, 4 layers", "minibeit3 bf16", "bound bf16", 0.85),
    (
        "base caption, 4 layers",
        "minibeit3 fp32, greedy",
        "minibeit3 fp32, greedy without cache",
        7.0,
    ),
    ("base caption, 4 layers", "minibeit3 fp32, 3 beams", "minibeit3 fp32, greedy", 1 / 1.3),
    ("base caption, 4 layers", "minibeit3 fp32, 3 beams", "torchscale fp32, 3 beams", 1.6),
    ("tiny caption", "minibeit3 fp32, 3 beams", "torchscale fp32, 3 beams", 2.2),
    ("480 px pair memory", "minibeit3 fp32", "torchscale fp32", 0.5),
    ("tiny step memory", "minibeit3 auto", "torchscale fp32", 0.42),
    *((f"automatic type, {cap}", "minibeit3 auto", "minibeit3 fp32", 0.97) for cap in CAPS),
)


def measure(name: str) -> dict[str, Any]:
    """All figures of one set."""
    if name == "growth":
        rows = growth(preset("tiny"), "step", 4, 16, "cpu", torch.float32, 3)
        return {"preset": "tiny", "work": "step", "batch": 4, "text": 16, "growth": rows}
    if name.startswith("automatic"):
        plan = {"preset": "tiny", "work": "step", "batch": 8, "text": 32}
    else:
        plan = SETS[name]
    config = replace(preset(plan["preset"]), **plan.get("changes", {}))
    work, batch, length = plan["work"], plan["batch"], plan["text"]
    auto = torch.bfloat16 if bfloat16_pays() else torch.float32
    peers: dict[str, Peer] = installed()
    if name.startswith("automatic"):
        peers = {}
        types = (torch.float32, auto) if auto != torch.float32 else (torch.float32,)
    else:
        types = tuple(getattr(torch, t) for t in plan.get("types", BOTH))
    if "large vocabularies" in name and "torchscale" in peers:
        peers["torchscale, all places"] = partial(bench_torchscale.torchscale, everywhere=True)
    found: dict[str, Any] = {"plan": plan, "auto": "bf16" if auto != torch.float32 else "fp32"}
    runs = contestants(work, config, batch, length, "cpu", types, peers=peers)
    if plan.get("memory"):
        sizes = {who: peak_bytes(run, "cpu") for who, run in runs.items()}
        return found | {"rows": [{"name": who, "peak_bytes": n} for who, n in sizes.items()]}
    limits = ceilings("cpu")
    times = in_turns(runs, plan.get("rounds", 3), False)
    found["matmul_gflops_per_second"] = limits
    return found | {"rows": table(times, work_flops(config, work, batch, length), limits)}


def reached(goal: tuple[str, str, str, float], sets: dict[str, Any]) -> dict[str, Any]:
    """One line: the goal, what was got and what the bare bound got; None where it is missing."""
    name, mine, other, wanted = goal
    memory, found = "memory" in name, sets.get(name, {})
    tried = next((text for key, text in TRIED.items() if key in name), FORWARD)
    if memory:
        tried = TRIED["memory"]
    line = {"set": name, "mine": mine, "other": other, "memory": memory, "goal": wanted}
    line["tried"] = tried
    rows = {row["name"]: row for row in found.get("rows", ())}
    mine = mine.replace("auto", found.get("auto", ""))
    own, bare = rows.get(mine), rows.get(f"bound {mine.split()[-1]}", {})
    if own is None or (other not in rows):
        return line | {"bound": None, "got": None, "met": None}
    line["bound"] = bare.get("times_as_fast_as", {}).get(other)
    if memory:
        got = own["peak_bytes"] / rows[other]["peak_bytes"]
    else:
        got = own["times_as_fast_as"].get(other, 1.0)  # 1 = auto is the other one itself
    return line | {"got": got, "met": got <= wanted if memory else got >= wanted}


def main() -> None:
    """Measure all sets, or some."""
    names = (*SETS, "growth", *(f"automatic type, {cap}" for cap in CAPS))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names, action="append", help="these sets alone")
    parser.add_argument("--child", choices=names, help="measure this one here and print it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    for name in options.only or names:
        cap = CAPS.get(name.removeprefix("automatic type, "), {})
        command = [sys.executable, "-W", "ignore", __file__, "--child", name]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | cap)
        if run.returncode:
            print(f"{name} failed: {run.stderr[-1000:]}", file=sys.stderr)
            continue
        kept = json.loads(FILE.read_text()) if FILE.exists() else {"sets": {}}
        kept["sets"][name] = json.loads(run.stdout.splitlines()[-1])
        report = {
            "what": "CPU goals: multiples of speed and shares of memory, one run per set, in turns",
            "machine": machine("cpu"),
            "command": shlex.join(["python", "tools/cpu_goals.py"]),
            "goals": [reached(goal, kept["sets"]) for goal in GOALS],
            "sets": kept["sets"],
        }
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_file(FILE, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
