"""Curves over the length of fine-tuning: from the study's runs alone, two lengths at least."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def run(start: str, steps: int, seed: int, accuracy: float, **other: Any) -> dict[str, Any]:
    told = {"labels": None, "blind": None, "holdout": None, "limit": 500, "seed": seed}
    seconds = {"start": start, "steps": steps, "training_cpu_s": steps / 4}
    return told | seconds | {"figures": {"accuracy": accuracy}} | other


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("modes_curves")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "modes").mkdir()
    two = [run("pretrained", 400, 0, 0.6), run("pretrained", 400, 1, 0.8)]
    two += [run("pretrained", 100, 0, 0.4), run("scratch", 400, 0, 0.3)]
    two += [run("pretrained", 50, 0, 0.1, blind="image"), run("pretrained", 50, 0, 0.1, labels=9)]
    one = [run("pretrained", 400, seed, 0.5) for seed in range(2)]
    for name, runs in (("scenes-vqa", two), ("scenes-nlvr2", one)):
        (tmp_path / "modes" / f"{name}.json").write_text(json.dumps({"runs": runs}))
    return tmp_path


def test_a_curve_needs_two_lengths_and_has_controls_of_its_kind_only(
    tool: Any, results: Path
) -> None:
    (curve,) = tool.all_curves(results)
    assert (curve.title, curve.figure, curve.goal) == ("scenes-vqa", "accuracy", 0.90)
    assert [(v.steps, v.seconds, round(v.mean, 6), v.n) for v in curve.starts["pretrained"]] == [
        (100, 25, 0.4, 1),
        (400, 100, 0.7, 2),
    ]
    assert [v.mean for v in curve.starts["scratch"]] == [0.3]


def test_the_figure_is_written_and_without_curves_the_fix_is_said(
    tool: Any, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = results / "figures" / "curves.png"
    monkeypatch.setattr("sys.argv", ["modes_curves.py", str(out), "--results", str(results)])
    assert tool.main() == 0 and out.stat().st_size > 5_000
    (results / "modes" / "scenes-vqa.json").unlink()
    assert tool.main() == 1 and "study_modes --steps" in capsys.readouterr().err
