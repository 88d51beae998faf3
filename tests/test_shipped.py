"""Shipped models: small, whole again when read, and held to the run that made them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import CONFIG, plan
from typer.testing import CliRunner

from minibeit3 import from_pretrained
from minibeit3.backbones import build_backbone
from minibeit3.batches import generator_of
from minibeit3.checkpoint import save_pretrained
from minibeit3.cli import app
from minibeit3.data.paths import data_root
from minibeit3.finetune import evaluate_saved, finetune, prepare
from minibeit3.objective import MaskedDataModel
from minibeit3.shipped import recorded_run, ship, shipped, tolerance
from minibeit3.storage import CheckpointError, read_folder, write_folder
from minibeit3.text_tokenizer import TextTokenizer

LIMIT = 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of its own with a start and one finished run from it, blind for pictures."""
    root = tmp_path_factory.mktemp("lab")
    (root / "data_samples/checkpoints").mkdir(parents=True)
    for file in data_root().iterdir():
        if file.name != "checkpoints":
            (root / "data_samples" / file.name).symlink_to(file)
    start = root / "data_samples/checkpoints/start"
    model = MaskedDataModel(build_backbone(CONFIG, generator_of(7)))
    save_pretrained(model, start, TextTokenizer.lab(), torch.bfloat16)
    finetune(prepare("scenes-vqa", start, blind="image"), root / "run", plan(steps=1))
    with pytest.MonkeyPatch.context() as here:
        here.setenv("MINIBEIT3_DATA", str(root / "data_samples"))
        ship(root / "run", root / "data_samples/checkpoints/modes/vqa")
    return root


@pytest.fixture
def model(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's shipped model, in a lab that has no other."""
    monkeypatch.setenv("MINIBEIT3_DATA", str(lab / "data_samples"))
    return lab / "data_samples/checkpoints/modes/vqa"


def record(lab: Path, figures: dict[str, float], **changes: Any) -> None:
    """Write the study with this one run."""
    run = {"start": "pretrained", "labels": None, "blind": "image", "holdout": None, "seed": 0}
    run |= {"steps": 1, "batch_size": 8, "lr": 3e-3, "limit": LIMIT, "command": "minibeit3 ..."}
    file = lab / "results/modes/scenes-vqa.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"runs": [run | {"figures": figures} | changes]}))


def evaluate_all(*options: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, ["evaluate", "--all", "--json", *options])
    return result.exit_code, json.loads(result.stdout)


def test_a_shipped_model_is_the_runs_in_bfloat16_and_stores_only_what_its_start_lacks(
    lab: Path, model: Path
) -> None:
    trained, again = from_pretrained(lab / "run/model"), from_pretrained(model)
    for name, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16().float()), name
    start = from_pretrained(lab / "data_samples/checkpoints/start").state_dict()
    stored = read_folder(model)[1]
    changed = {
        n for n, t in trained.state_dict().items() if n not in start or (t != start[n]).any()
    }
    assert stored.keys() == changed != trained.state_dict().keys()
    notes = json.loads((model / "finetuning.json").read_text())
    assert notes["start"] == "data_samples/checkpoints/start" and shipped() == [model]


def test_figures_are_written_with_the_command_that_measures_them_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", str(model), "--limit", "10", "--out", str(tmp_path / "a/figures.json")]
    monkeypatch.setattr("sys.argv", ["minibeit3", *words])
    told = CliRunner().invoke(app, [*words, "--json"])
    kept = json.loads((tmp_path / "a/figures.json").read_text())
    assert kept["figures"] == json.loads(told.stdout)["figures"] and kept["limit"] == 10
    assert kept["command"] == f"python -m minibeit3 {shlex.join(words)}" and kept["machine"]["cpu"]
    refused = CliRunner().invoke(app, ["evaluate", "--all", "--out", "x.json"])
    assert refused.exit_code == 2 and "--out" in refused.output + refused.stderr


def test_every_results_file_names_the_command_that_makes_it() -> None:
    files = sorted((data_root().parent / "results").glob("*.json"))
    assert files
    lacking = [file.name for file in files if not json.loads(file.read_text()).get("command")]
    assert lacking == []


def test_without_its_start_or_beside_another_one_a_shipped_model_is_refused(
    lab: Path, model: Path
) -> None:
    start, hidden = lab / "data_samples/checkpoints/start", lab / "hidden"
    start.rename(hidden)
    with pytest.raises(CheckpointError, match="only what differs"):
        from_pretrained(model)
    save_pretrained(MaskedDataModel(build_backbone(CONFIG, generator_of(8))), start)
    with pytest.raises(CheckpointError, match="another one now"):
        from_pretrained(model)
    with pytest.raises(CheckpointError, match="a base itself"):
        save_pretrained(from_pretrained(hidden), lab / "other", base=model)
    for file in start.iterdir():
        file.unlink()
    start.rmdir()
    hidden.rename(start)


def test_a_model_cannot_name_its_start_by_an_absolute_path(
    lab: Path, model: Path, tmp_path: Path
) -> None:
    config, tensors = read_folder(model)
    config["base"]["folder"] = str((lab / "data_samples/checkpoints/start").resolve())
    write_folder(tmp_path / "copy", config, tensors)
    with pytest.raises(CheckpointError, match="a path from it is due"):
        from_pretrained(tmp_path / "copy")


def test_evaluate_all_agrees_with_the_recorded_run_and_fails_for_another_figure(
    lab: Path, model: Path
) -> None:
    with torch.inference_mode():
        _, figures = evaluate_saved(lab / "run", limit=LIMIT)
    record(lab, figures)
    code, (report,) = evaluate_all()
    assert code == 0 and report["figures"].keys() == figures.keys()
    for name, found in report["figures"].items():
        assert found["holds"] and found["recorded"] == figures[name]
    wrong = figures | {"accuracy": figures["accuracy"] + 0.5}
    record(lab, wrong)
    code, (report,) = evaluate_all()
    missed = [name for name, found in report["figures"].items() if not found["holds"]]
    assert code == 1 and missed == ["accuracy"]
    told = CliRunner().invoke(app, ["evaluate", "--all"])
    assert told.exit_code == 1 and f"{len(figures) - 1} of {len(figures)}" in told.stdout


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"blind": None}, {"lr": 1e-3}, {"start": "scratch"}]
)
def test_a_model_without_a_recorded_run_is_said_and_fails(
    lab: Path, model: Path, change: dict[str, Any]
) -> None:
    record(lab, {"accuracy": 0.5}, **change)
    told = CliRunner().invoke(app, ["evaluate", "--all"])
    assert told.exit_code == 1 and "no run that made this model" in told.stdout
    assert recorded_run(json.loads((model / "finetuning.json").read_text()), LIMIT) is None


def test_figures_that_are_no_longer_measured_are_named(lab: Path, model: Path) -> None:
    record(lab, {"accuracy": 0.5, "F1": 0.5})
    told = CliRunner().invoke(app, ["evaluate", "--all"])
    assert told.exit_code == 2 and "no longer measures ['F1']" in told.stderr


def test_a_lab_that_ships_nothing_says_so(
    lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINIBEIT3_DATA", str(tmp_path))
    told = CliRunner().invoke(app, ["evaluate", "--all"])
    assert told.exit_code == 2 and "no fine-tuned models in" in told.stderr


def test_the_tolerance_is_two_standard_errors_of_the_samples_of_the_figure() -> None:
    figures = {"top": 0.5, "top/a": 0.5, "top/b": 1.0, "CIDEr": 3.0}
    assert tolerance("top", figures, 100) == pytest.approx(0.1)
    assert tolerance("top/a", figures, 200) == pytest.approx(0.1)
    assert tolerance("top/b", figures, 200) == pytest.approx(0.01)  # all right is not certain
    assert tolerance("CIDEr", figures, 100) == pytest.approx(0.6)


def test_every_shipped_model_of_the_lab_opens_and_has_the_run_that_made_it() -> None:
    for folder in shipped():
        from_pretrained(folder)
        assert recorded_run(json.loads((folder / "finetuning.json").read_text())), folder
