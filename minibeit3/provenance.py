"""Where a results file comes from: the machine, the commit and the command, as all of them say it.

write_results(path, {"what": "...", **provenance("tools/study.py"), "runs": runs})
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minibeit3.storage import write_file

ROOT = Path(__file__).resolve().parents[1]


def provenance(program: str, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The keys "machine", "commit", "changed_files" and "command".

    program: as one types it, for instance "tools/study_modes.py". arguments: None = this process's.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return {"machine": machine(), **state(), "command": f"python {program} {shlex.join(words)}"}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """As the system tells it."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2] for line in told.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def state() -> dict[str, Any]:
    """The commit of the code, and how many of git's files differ from it."""
    changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
    return {"commit": git("rev-parse", "HEAD"), "changed_files": len(changed)}


def git(*words: str) -> str:
    """What git says about this repository; CalledProcessError outside of one."""
    run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def write_results(path: Path, results: dict[str, Any]) -> None:
    """JSON with the folders that it needs, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(results, indent=1) + "\n").encode())
