"""metrics.jsonl, one line per logged step, and a progress line for whoever watches."""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

Record = dict[str, float]

METRICS = "metrics.jsonl"


def read_metrics(folder: Path | str) -> list[Record]:
    """Every record of a run, oldest first; a last line that a crash tore is left out."""
    records, _ = _intact(Path(folder) / METRICS, up_to=math.inf)
    return records


def _intact(path: Path, up_to: float) -> tuple[list[Record], int]:
    """The records up to a step, as far as they are whole, and how many bytes they take."""
    records, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or record["step"] > up_to:
            break
        records.append(record)
        size += len(line)
    return records, size


class RunLog:
    """Appends records; made anew after a crash, it forgets what came after the checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        """step: the last step that counts."""
        path = folder / METRICS
        _, size = _intact(path, up_to=step)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(size)

    def write(self, record: Record) -> None:
        """Append one line, floats exactly; OSError when the disk is full."""
        line = json.dumps(record).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "no room for one more record", self._file.name)

    def settle(self) -> None:
        """Wait until the disk has it all: a checkpoint must not outlive its own log."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def progress_line(record: Record, steps: int) -> str:
    """One line for people: `step 120/1000, loss 3.2145, 85 samples/s, 0:02:31 left`."""
    minutes, seconds = divmod(round(record["seconds_left"]), 60)
    left = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    speed = f"{record['samples_per_second']:.3g} samples/s"
    return f"step {record['step']}/{steps}, loss {record['loss']:.4f}, {speed}, {left} left"


def progress(steps: int, stream: TextIO | None = None) -> Callable[[Record], None]:
    """An `on_log` that rewrites one line, on a terminal or in a notebook; None = stderr."""
    shown = -1.0

    def show(record: Record) -> None:
        nonlocal shown
        last, now = record["step"] == steps, time.monotonic()
        if now - shown > 0.2 or last:  # a notebook cannot keep up with more
            shown, out = now, stream or sys.stderr
            end = "\n" if last else ""
            out.write(f"\r{progress_line(record, steps)}\033[K{end}")
            out.flush()

    return show
