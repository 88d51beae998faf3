"""Ship a finished pretraining run: its weights in bfloat16, its log, and how it was made.

    python tools/ship_pretrained.py runs/nano data_samples/checkpoints/nano \\
        --command "minibeit3 pretrain runs/nano --preset nano ..."

Run it in the checkout that made the run, with the environment of the run.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from minibeit3 import runfolder
from minibeit3.checkpoint import from_pretrained, save_pretrained
from minibeit3.runlog import read_metrics
from minibeit3.storage import write_file
from minibeit3.text_tokenizer import TextTokenizer

ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)


def main() -> None:
    """Write model, log and training.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="that made the run")
    given = parser.parse_args()
    state, records = runfolder.load_newest(given.run), read_metrics(given.run)
    if state is None or state["step"] < state["config"]["steps"]:
        raise SystemExit(f"{given.run} is not finished: give its command again")
    model, words = given.run / "model", TextTokenizer.from_pretrained(given.run / "model")
    save_pretrained(from_pretrained(model), given.out, words, torch.bfloat16)
    shutil.copy(given.run / "metrics.jsonl", given.out / "metrics.jsonl")
    notes = {
        "command": given.command,
        "plan": state["config"],
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
        "cpu_seconds": round(records[-1]["cpu_seconds"], 1),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len(git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "machine": f"{cpu()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "log": "metrics.jsonl",
        "weights": "the run's last step, rounded to bfloat16",
    }
    write_file(given.out / "training.json", (json.dumps(notes, indent=1) + "\n").encode())


def git(*words: str) -> str:
    """What git says."""
    run = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
