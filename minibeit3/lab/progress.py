"""What a learner has done, and the score, in one JSON file; a teacher's private checks.

$MINIBEIT3_PROGRESS names the learner's file (progress/ada.json); without it nothing is written and
the score lasts as long as the kernel. $MINIBEIT3_PRIVATE_CHECKS names a Python file of the
teacher's own with functions `check_<exercise>(answer)` that raise AssertionError; it runs as code.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minibeit3.storage import read_json, write_file

PROGRESS, PRIVATE = "MINIBEIT3_PROGRESS", "MINIBEIT3_PRIVATE_CHECKS"
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One exercise of one learner. right: True = an answer of the learner's own held once."""

    tries: int = 0
    right: bool = False
    hints: int = 0


_kept: dict[str, Record] = {}


def records() -> dict[str, Record]:
    """Exercise -> what was done, from the learner's file if there is one.

    Raises ValueError for a file that this lab did not write.
    """
    path = _path()
    if path is None or not path.exists():
        return dict(_kept) if path is None else {}
    found = read_json(path)
    known = {field.name: type(field.default) for field in fields(Record)}
    try:
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, expected {FORMAT}")
        for record in found["exercises"].values():
            if {name: type(value) for name, value in record.items()} != known:
                raise ValueError(f"a record {record}")
        return {name: Record(**record) for name, record in found["exercises"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no progress file ({error}): name another one") from error


def note(name: str, right: bool | None = None, hint: bool = False) -> None:
    """Add what happened at the exercise `name`. right: result of a check, None = no check ran.

    Once right stays right. Raises ValueError as `records` does, and CheckpointError when the file
    cannot be written.
    """
    found = records()
    old = found.get(name, Record())
    new = Record(
        tries=old.tries + (right is not None),
        right=old.right or bool(right),
        hints=old.hints + hint,
    )
    found[name] = new
    _kept[name] = new
    if (path := _path()) is not None:
        told = {key: asdict(record) for key, record in sorted(found.items())}
        content = {"format": FORMAT, "learner": path.stem, "exercises": told}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def points(found: Mapping[str, Record], difficulty: Mapping[str, int]) -> tuple[int, int]:
    """Points reached and possible: the difficulty of each exercise that is right, and of all."""
    right = (difficulty.get(name, 0) for name, record in found.items() if record.right)
    return sum(right), sum(difficulty.values())


def private_check(name: str) -> Callable[[Any], None] | None:
    """The teacher's own check of an exercise, None without one.

    ValueError when the file that the environment names is missing or has no check at all.
    """
    given = os.environ.get(PRIVATE)
    if not given:
        return None
    path = Path(given)
    spec = importlib.util.spec_from_file_location("private_checks", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{PRIVATE} is {given!r}: expected a Python file of your own")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checks = {key: value for key, value in vars(module).items() if key.startswith("check_")}
    if not checks:
        raise ValueError(f"{given} has no function check_<exercise>(answer)")
    return checks.get(f"check_{name}")


def _path() -> Path | None:
    given = os.environ.get(PROGRESS)
    return Path(given) if given else None
