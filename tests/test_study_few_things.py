"""The study of questions about few things: one thing differs between its arms."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    return importlib.import_module("study_few_things")


def test_arms_differ_in_their_scenes_or_in_their_rate_alone(study: Any) -> None:
    (few, _), (everything, lr), (fast, fast_lr) = (study.opened(arm, 0) for arm in study.ARMS)
    assert [data.rule.counts[1] for data in few.recipe.samples.datasets] == [6, 1, 2, 3]
    for job in (everything, fast):
        assert job.recipe.samples.rule.counts == (1, 6) and job.recipe.samples.split == "train"
    assert (lr, fast_lr) == (few.recipe.plan.lr, 1e-3)


def test_means_are_over_the_seeds_of_an_arm(study: Any) -> None:
    scores = ((study.FEW, 0.5), (study.ALL, 0.4), (study.FEW, 0.7))
    runs = [{"arm": arm, "figures": {"accuracy": value}} for arm, value in scores]
    found = study.report(runs, 10, 20)["mean_sd_n"]
    assert found[study.FEW]["accuracy"] == [0.6, pytest.approx(0.1414, abs=1e-4), 2]
    assert found[study.ALL]["accuracy"] == [0.4, None, 1]


def test_a_file_of_other_runs_is_refused_and_not_overwritten(study: Any, tmp_path: Path) -> None:
    file = tmp_path / "few.json"
    assert study.held(file, 10, 20) == []
    run = {"arm": study.ALL, "seed": 0, "figures": {"accuracy": 0.5}}
    file.write_text(json.dumps(study.report([run], 10, 20)))
    assert study.held(file, 10, 20) == [run]
    for steps, limit in ((11, 20), (10, 21)):
        with pytest.raises(ValueError, match="holds runs of 10 steps, 20 test questions"):
            study.held(file, steps, limit)
