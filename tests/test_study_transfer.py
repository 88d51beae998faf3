"""The study of transfer: what is compared had equal budgets, and a cut study goes on."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script with one task, two short lengths and its outputs in a folder of the test."""
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("study_transfer")
    monkeypatch.setattr(module, "LENGTHS", (4, 8))
    monkeypatch.setattr(module, "LONGEST_EQUAL", 4)
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module, "TASKS", {"scenes-classes": (20, "top1", "classes")})
    monkeypatch.setattr(module, "OUT", tmp_path / "results.json")
    monkeypatch.setattr(module, "FIGURE", tmp_path / "figure.png")
    arguments = ["study_transfer.py", "--runs", str(tmp_path), "--seeds", "1", "--limit", "10"]
    monkeypatch.setattr(sys, "argv", arguments)
    return module


@pytest.mark.slow
def test_scratch_has_the_seconds_of_pretraining_too_and_a_cut_study_goes_on(study: Any) -> None:
    study.main()
    done = json.loads(study.OUT.read_text())
    runs = {(run["kind"], run["pretraining_steps"]): run for run in done["runs"]}
    assert set(runs) == {
        (study.SCRATCH, 0),
        (study.PRETRAINED, 4),
        (study.PRETRAINED, 8),
        (study.EQUAL, 4),
        (study.PRETRAINED, study.shipped()[0]),
    }
    paid = runs[study.PRETRAINED, 4]
    total = paid["pretraining_cpu_s"] + paid["finetuning_cpu_s"]
    factor = total / paid["finetuning_cpu_s"]
    assert paid["pretraining_cpu_s"] > 0 and factor > 1
    more = runs[study.EQUAL, 4]["finetuning_steps"] - factor * 2  # rounded up
    assert -1e-9 <= more <= 1 + 1e-9
    assert runs[study.SCRATCH, 0]["pretraining_cpu_s"] == 0
    assert study.FIGURE.stat().st_size > 5_000

    ran: list[dict[str, Any]] = []
    one_run = study.one_run
    study.one_run = lambda key, runs, given: ran.append(key) or one_run(key, runs, given)
    study.OUT.write_text(json.dumps(done | {"runs": done["runs"][:-1]}))
    study.main()
    assert ran == [{k: done["runs"][-1][k] for k in ran[0]}]


def test_a_cut_study_compares_all_kinds_of_its_first_seed(study: Any) -> None:
    kinds = [(kind, seed) for kind, _, seed, _ in study.grid(2)]
    assert {kind for kind, seed in kinds[: len(kinds) // 2]} == {kind for kind, _ in kinds}
    assert [seed for _, seed in kinds] == sorted(seed for _, seed in kinds)
