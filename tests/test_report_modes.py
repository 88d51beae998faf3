"""The table of the five modes: every number from results/modes, none without a run."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

TOOL = Path(__file__).parents[1] / "tools" / "report_modes.py"
spec = importlib.util.spec_from_file_location("report_modes", TOOL)
assert spec is not None and spec.loader is not None
report = importlib.util.module_from_spec(spec)
sys.modules["report_modes"] = report  # dataclasses look themselves up there
spec.loader.exec_module(report)


def run(seed: int, value: float, figure: str = "accuracy", **other: Any) -> dict[str, Any]:
    kind = {"start": "pretrained", "labels": None, "blind": None, "holdout": None, "limit": 500}
    told = {"steps": 100, "training_cpu_s": 10.0, "seed": seed, "figures": {figure: value}}
    return kind | told | other


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three recipes, one of them without runs, and lines without a model."""
    vqa = [run(0, 0.91), run(1, 0.95), run(2, 0.10, steps=10), run(3, 0.2, holdout="relation")]
    vqa += [run(0, 0.5, start="scratch"), run(0, 0.99, start="scratch", steps=1000)]
    vqa += [run(0, 0.3, blind="image"), run(0, 0.4, blind="text")]
    for one in vqa:
        one["figures"]["accuracy/relation"] = one["figures"]["accuracy"] / 2
    glosses = [run(0, 0.8, "top1", labels=4000), run(0, 0.95, "top1")]
    lines = {"majority/accuracy": 0.25, "question only/accuracy": 0.37, "question only/other": 1.0}
    study = {
        "scenes-vqa": {"runs": vqa, "references": {"500": lines}},
        "glosses": {"runs": glosses, "references": {"500": {"TF-IDF, linear/top1": 0.93}}},
        "binding": {"references": {}},
    }
    (tmp_path / "modes").mkdir()
    for name, content in study.items():
        (tmp_path / "modes" / f"{name}.json").write_text(json.dumps(content))
    known = {"TF-IDF, linear, labels=4000/top1": {"mean": 0.84, "sd": 0.0, "n": 3}}
    (tmp_path / "reference_lines.json").write_text(json.dumps({"glosses": known, "seeds": 3}))
    return tmp_path


def cells(results: Path) -> dict[tuple[str, str], dict[str, str]]:
    lines = report.table(report.all_rows(results)).splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-2]]
    rows = [dict(zip(split[0], row, strict=True)) for row in split[2:]]
    return {(row["task"], row["figure"]): row for row in rows}


def test_a_row_compares_runs_of_the_same_steps_with_the_best_line_and_the_goal(
    results: Path,
) -> None:
    row = cells(results)["scenes-vqa, 100 steps", "accuracy"]
    assert row["mode"] == "fusion" and row["pretrained"] == "0.930 ± 0.028 (2)"
    assert row["scratch"] == "0.500 (1)"
    assert row["blind controls"] == "no image 0.300 (1), no text 0.400 (1)"
    assert row["best line without a model"] == "0.370 (question only)"
    assert (row["goal"], row["met"]) == ("0.90", "yes")
    relation = cells(results)["scenes-vqa, 100 steps", "accuracy/relation"]
    assert (relation["goal"], relation["met"]) == ("0.90", "no")
    assert relation["best line without a model"] == ""


def test_longer_runs_without_a_control_stand_below_the_longest_that_have_one(
    results: Path,
) -> None:
    file = results / "modes" / "scenes-vqa.json"
    study = json.loads(file.read_text())
    study["runs"] += [run(0, 0.99, steps=900), run(0, 0.98, steps=500)]
    file.write_text(json.dumps(study))
    tasks = {
        task: row for (task, _), row in cells(results).items() if task.startswith("scenes-vqa")
    }
    assert list(tasks) == ["scenes-vqa, 100 steps", "scenes-vqa, 900 steps"]
    longest = cells(results)["scenes-vqa, 900 steps", "accuracy"]
    assert (longest["pretrained"], longest["scratch"]) == ("0.990 (1)", "")


def test_a_row_names_the_fine_tuned_model_that_its_runs_began_with(results: Path) -> None:
    file = results / "modes" / "scenes-vqa.json"
    starts = {100: "data/checkpoints/tiny", 900: "data/checkpoints/modes/binding"}
    study = {"runs": [run(0, 0.9, steps=n, command=f"x --start {s}") for n, s in starts.items()]}
    study["runs"].append(run(0, 0.5, start="scratch", command="x --scratch --size tiny"))
    file.write_text(json.dumps(study))
    tasks = [task for task, _ in cells(results) if task.startswith("scenes-vqa")]
    assert tasks == ["scenes-vqa, 100 steps", "scenes-vqa, 900 steps, from binding"]


def test_a_recipe_whose_data_are_elsewhere_has_the_goals_that_its_study_noted(
    results: Path,
) -> None:
    study = {"runs": [run(0, 0.98)], "references": {}, "goals": {"accuracy": 0.97}}
    (results / "modes" / "easy-vqa.json").write_text(json.dumps(study))
    row = cells(results)["easy-vqa, 100 steps", "accuracy"]
    assert (row["mode"], row["goal"], row["met"]) == ("fusion", "0.97", "yes")


def test_a_goal_for_few_labels_is_asked_of_those_runs_beside_their_own_line(results: Path) -> None:
    few, every = (cells(results)[f"glosses, {n}", "top1"] for n in ("4,000 labels", "100 steps"))
    assert (few["goal"], few["met"], every["goal"], every["met"]) == ("0.90", "no", "", "")
    assert few["best line without a model"] == "0.840 (TF-IDF, linear)"
    assert every["best line without a model"] == "0.930 (TF-IDF, linear)"


def test_recipes_without_runs_are_left_out_and_modes_are_in_the_papers_order(
    results: Path, tmp_path: Path
) -> None:
    assert [row.mode for row in report.all_rows(results)] == ["language"] * 2 + ["fusion"] * 2
    assert "No recipe has been studied" in report.table(report.all_rows(tmp_path / "none"))


def test_a_caption_figure_of_one_way_to_decode_has_the_line_of_its_kind() -> None:
    study = {
        "references": {"9": {"nearest pixels/exact": 0.1}, "10": {"nearest pixels/exact": 0.2}}
    }
    assert report.lines_of(study, {}, "beam 3/exact", None) == {"nearest pixels": 0.2}
    assert report.lines_of(study, {}, "beam 3/true", None) == {}


def test_only_the_place_between_the_marks_changes_and_without_marks_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    readme = results / "README.md"
    command = ["report_modes.py", "--results", str(results), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", command)
    readme.write_text("no marks")
    assert report.main() == 1 and readme.read_text() == "no marks"
    assert "<!-- modes -->" in capsys.readouterr().err
    readme.write_text("above\n<!-- modes -->\nold\n<!-- /modes -->\nbelow\n")
    for _ in range(2):
        assert report.main() == 0
        text = readme.read_text()
        assert text.startswith("above\n<!-- modes -->\n| mode | task |") and "old" not in text
        assert text.endswith("\n<!-- /modes -->\nbelow\n") and text.count("scenes-vqa") == 2


def test_the_figure_is_800_pixels_wide_and_grows_with_the_rows(results: Path) -> None:
    rows = report.all_rows(results)
    heights = []
    for part in (rows[:1], rows):
        report.draw(part, results / "modes.png")
        with Image.open(results / "modes.png") as picture:
            assert picture.width == 800
            heights.append(picture.height)
    assert heights[0] < heights[1]
