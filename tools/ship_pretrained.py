"""Ship a finished pretraining: its weights in bfloat16, its log, and how it was made.

    python tools/ship_pretrained.py runs/tiny --out data_samples/checkpoints/tiny \\
        --command "minibeit3 pretrain runs/tiny --preset tiny ..." --commit 5675eb0

Several runs, each begun with the weights of the one before, are named in order, with a --command
and a --commit each; --append, where the first one began with the weights that are shipped now. Run
it with the environment of the runs.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from minibeit3 import runfolder
from minibeit3.checkpoint import from_pretrained, save_pretrained
from minibeit3.provenance import cpu_name
from minibeit3.runlog import Record, read_metrics
from minibeit3.storage import write_file
from minibeit3.text_tokenizer import TextTokenizer

ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)
RECORDS = 100  # of a run's log that are shipped


def main() -> None:
    """Write model, log and training.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", action="append", required=True, help="that made a run")
    parser.add_argument("--commit", action="append", required=True, help="of the code it ran")
    parser.add_argument("--append", action="store_true", help="keep the runs that were shipped")
    given = parser.parse_args()
    shipped = given.out / "training.json"
    phases = json.loads(shipped.read_text("utf-8"))["phases"] if given.append else []
    for each in zip(given.runs, given.command, given.commit, strict=True):
        phases.append(phase(len(phases) + 1, *each, given.out))
    model = given.runs[-1] / "model"
    words = TextTokenizer.from_pretrained(model)
    save_pretrained(from_pretrained(model), given.out, words, torch.bfloat16)
    notes = {
        "phases": phases,
        "cpu_seconds": round(sum(p["cpu_seconds"] for p in phases), 1),
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "weights": "the last run's last step, rounded to bfloat16",
    }
    write_file(given.out / "training.json", (json.dumps(notes, indent=1) + "\n").encode())


def phase(number: int, run: Path, command: str, commit: str, out: Path) -> dict[str, Any]:
    """What training.json says of one run; its log is copied to `out`."""
    state = runfolder.load_newest(run)
    if state is None or not (run / "model").is_dir():
        raise SystemExit(f"{run} has saved no model: give its command again")
    log, steps = f"metrics-{number}.jsonl", state["step"]
    records = [record for record in read_metrics(run) if record["step"] <= steps]
    spent = round(records[-1]["cpu_seconds"], 1)
    records = thinned(records)
    out.mkdir(parents=True, exist_ok=True)
    short = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()}
             for r in records]  # fmt: skip
    lines = "".join(f"{json.dumps(record)}\n" for record in short)
    write_file(out / log, lines.encode())
    return {
        "command": command,
        "commit": commit,
        "steps_done": steps,  # fewer than planned where a run was stopped and the next one began
        "plan": state["config"],
        "cpu_seconds": spent,
        "log": log,
    }


def thinned(records: list[Record]) -> list[Record]:
    """Every k-th record, so that at most `RECORDS` stay, and the last: logs must not grow large."""
    every = math.ceil(len(records) / RECORDS)
    return [r for at, r in enumerate(records) if at % every == 0 or at == len(records) - 1]


if __name__ == "__main__":
    main()
