"""One folder per run: a lock against a second run, and checkpoints that survive what may come.

A checkpoint is one file, `step-00001000-<digest>.pt`: the first 16 digits of its SHA-256 stand in
its name, so that a single rename completes it and any changed byte shows. It is written beside,
forced to the disk and only then renamed; power may fail at any time.
"""

import errno
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if os.name == "posix":
    import fcntl

KEPT = 2  # with one alone, a damaged file would cost the whole run
NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")

_mine: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of the folder; BlockingIOError names the process that is in it.

    The system drops the lock of a process that dies. Worker processes do not inherit it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / "lock").resolve()
    if path in _mine:  # the system's lock is between processes and would let us in twice
        raise BlockingIOError(f"{folder} is in use by this very process: wait or take another")
    with path.open("a+") as file:
        if os.name == "posix":
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise BlockingIOError(
                    f"{folder} is in use by process {file.read().strip() or '?'}: "
                    "stop that run, or give this one another folder"
                ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _mine.add(path)
        try:
            for torn in folder.glob("*.tmp"):
                torn.unlink()
            yield
        finally:
            _mine.discard(path)


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name))


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state of `step` and remove all but the last two checkpoints.

    state: tensors and plain values in dicts and lists. OSError when the disk is full; the
    checkpoints written before are then still there.
    """
    torn = folder / f"step-{step:08}.tmp"
    try:
        with torn.open("w+b") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        path = folder / f"step-{step:08}-{digest}.pt"
        os.replace(torn, path)
    except (OSError, RuntimeError) as error:  # torch words a full disk as a RuntimeError
        torn.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
        kept = [old.name for old in checkpoints(folder)]
        raise OSError(
            errno.ENOSPC,
            f"could not write {torn}: {size_of(state)} bytes needed, {free} free ({error}). "
            f"Intact: {kept or 'none'}. Make room and run again",
        ) from error
    sync(folder)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """State of the newest intact checkpoint, on the CPU; None in a new folder.

    A damaged one is renamed to `*.damaged` with a warning, and the one before it taken.
    ValueError when all are damaged.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest()[:16] == path.stem[-16:]
        if intact:
            for bad in damaged:
                bad.rename(bad.with_suffix(".damaged"))
                warnings.warn(f"{bad} is damaged: continuing from {path.name}", stacklevel=3)
            return torch.load(path, map_location="cpu", weights_only=True)
        damaged.append(path)
    if damaged:
        names = [path.name for path in damaged]
        raise ValueError(f"{names} in {folder} are all damaged: start in another folder")
    return None


def sync(folder: Path) -> None:
    """Force the folder's list of names to the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def size_of(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state
    return sum(size_of(part) for part in parts) if isinstance(state, dict | list) else 0
