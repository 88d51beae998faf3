"""Fine-tuned models that the lab ships: written small, and held to the run that made them.

`tools/ship_mode.py` writes them, `minibeit3 evaluate --all` measures them again.
"""

import json
import os
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minibeit3.bands import WIDE, Band, bands, study_of, variant_of
from minibeit3.checkpoint import from_pretrained, save_pretrained
from minibeit3.data.paths import data_root
from minibeit3.finetune import LABELS, NOTES, saved_folder
from minibeit3.recipe import Figures
from minibeit3.storage import CONFIG, read_json, write_file
from minibeit3.text_tokenizer import MODEL_FILE, TextTokenizer


class Held(NamedTuple):
    """One figure measured again.

    recorded: of the run that trained the model, with `within`, what chance allows between two
    samples of that size. seeds: over all runs of the kind, None for fewer than two.
    """

    value: float
    recorded: float
    within: float
    seeds: Band | None

    @property
    def holds(self) -> bool:
        """True when the value is as near to the recorded one as it must be."""
        return abs(self.value - self.recorded) <= self.within


def shipped() -> list[Path]:
    """The folders of the fine-tuned models under data_samples/checkpoints."""
    return sorted(file.parent for file in (data_root() / "checkpoints").rglob(NOTES))


def ship(run: Path | str, folder: Path | str) -> int:
    """Write the model of a finished run to `folder` in bfloat16; bytes of the folder.

    Where the run started from a saved model, only weights that differ from it are written. Raises
    CheckpointError for a run that has not finished or whose start is gone.
    """
    source, folder, root = saved_folder(run), Path(folder), data_root().parent
    notes, base = read_json(source / NOTES), None
    if notes["start"]:
        start = root / notes["start"]
        base = start if (start / CONFIG).is_file() else start / "model"
        notes["start"] = Path(os.path.relpath(start, root)).as_posix()
    words = TextTokenizer.from_pretrained(source) if (source / MODEL_FILE).exists() else None
    save_pretrained(from_pretrained(source), folder, words, torch.bfloat16, base)
    write_file(folder / LABELS, (source / LABELS).read_bytes())
    write_file(folder / NOTES, (json.dumps(notes, indent=2) + "\n").encode())
    return sum(file.stat().st_size for file in folder.iterdir())


def recorded_run(notes: Mapping[str, Any], limit: int | None = None) -> dict[str, Any] | None:
    """The run in results/modes that made the model with these notes; None when none did.

    limit: samples of a split that the run evaluated, None = of several runs the most.
    """
    plan = notes.get("plan") or {}
    made = {field: notes.get(field) for field in ("labels", "blind", "holdout", "seed")}
    made |= {field: plan.get(field) for field in ("steps", "batch_size", "lr")}
    made["start"] = "pretrained" if notes.get("start") else "scratch"
    runs = [
        run
        for run in (study_of(notes["recipe"]) or {}).get("runs", [])
        if all(run.get(field) == value for field, value in made.items())
        and limit in (None, run["limit"])
    ]
    return max(runs, key=lambda run: run["limit"], default=None)


def held_to(recipe: str, run: Mapping[str, Any], figures: Figures) -> dict[str, Held]:
    """Every figure that a run of the recipe recorded, beside the one measured now.

    ValueError when some were not measured: the evaluation is another one than the run's.
    """
    if gone := run["figures"].keys() - figures.keys():
        raise ValueError(f"{recipe} no longer measures {sorted(gone)}: run its study again")
    spread = bands((study_of(recipe) or {}).get("runs", []), variant_of(run))
    return {
        name: Held(
            value=figures[name],
            recorded=recorded,
            within=tolerance(name, run["figures"], run["limit"]),
            seeds=spread.get(name),
        )
        for name, recorded in run["figures"].items()
    }


def tolerance(name: str, figures: Mapping[str, float], limit: int) -> float:
    """Two standard errors of a share among as many samples as the figure may have.

    A figure "a/kind" is of samples that its kinds share, evenly as far as is known. A figure above
    1 is no share: its error is that of a mean whose spread is as large as itself.
    """
    value, (parent, slash, _) = figures[name], name.rpartition("/")
    kinds = sum(other.rpartition("/")[0] == parent for other in figures) if slash else 1
    samples = max(1, limit // kinds)
    spread = max(value * (1 - value), 0.25 / samples) if 0 <= value <= 1 else value**2
    return WIDE * sqrt(spread / samples)
