"""Bands of the long runs: seeds of one kind only, missing ones said, verdicts with their noise."""

import math

import pytest

from minibeit3 import lab
from minibeit3.lab import bands

RUN = {"labels": None, "blind": None, "holdout": None, "limit": 500}


def run(start: str, steps: int, seed: int, accuracy: float, **other: object) -> dict[str, object]:
    told = {"start": start, "steps": steps, "seed": seed, "training_cpu_s": 10.0 * steps}
    return RUN | told | {"figures": {"accuracy": accuracy}} | other


RUNS = [
    run("pretrained", 100, 0, 0.5),
    run("pretrained", 100, 1, 0.7),
    run("pretrained", 10, 0, 0.1),
    run("pretrained", 100, 0, 0.2, limit=4),
    run("pretrained", 100, 0, 0.3, blind="image"),
    run("pretrained", 100, 0, 0.4, labels=50),
    run("scratch", 100, 0, 0.45),
]
STUDY = {
    "runs": RUNS,
    "references": {"100": {"majority/accuracy": 0.2}, "1000": {"majority/accuracy": 0.25}},
}


@pytest.fixture(autouse=True)
def study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "study_of", lambda recipe: STUDY if recipe == "known" else None)


def test_a_band_is_over_the_seeds_of_one_kind_with_the_most_steps() -> None:
    found = lab.band("known", "accuracy")
    assert found and (found.n, found.steps, found.seconds) == (2, 100, 1000.0)
    assert math.isclose(found.mean, 0.6) and math.isclose(found.sd, math.sqrt(0.02))
    assert found.holds(0.6 + 0.28) and not found.holds(0.6 + 0.29)


@pytest.mark.parametrize(
    ("kind", "mean"),
    [({"steps": 10}, 0.1), ({"blind": "image"}, 0.3), ({"labels": 50}, 0.4)],
)
def test_every_option_chooses_its_runs(kind: dict[str, int], mean: float) -> None:
    found = lab.band("known", "accuracy", **kind)  # pyright: ignore[reportArgumentType]
    assert found and found.mean == mean and found.n == 1 and not found.holds(mean)


def test_what_is_missing_is_none_and_said() -> None:
    assert lab.band("unknown", "accuracy") is None and lab.band("known", "f1") is None
    assert lab.band("known", "accuracy", holdout="pairs") is None
    assert lab.lines("unknown", "accuracy") == {} == lab.lines("known", "x")
    assert lab.told(None) == bands.MISSING and lab.verdict(0.9, None) == "unknown"


def test_the_kinds_of_runs_that_a_study_holds_are_told() -> None:
    assert lab.known("known", "labels") == [None, 50] and lab.known("unknown", "labels") == []
    assert lab.known("known", "start") == ["pretrained", "scratch"]


def test_a_line_is_that_of_the_most_samples() -> None:
    assert lab.lines("known", "accuracy") == {"majority": 0.25}


def test_a_line_had_as_many_labels_as_the_model_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        f"words, labels={labels}/accuracy": {"mean": mean}
        for labels, mean in (("50", 0.6), ("all", 0.9))
    }
    monkeypatch.setattr(bands, "known_lines", lambda recipe: known if recipe == "known" else {})
    assert lab.lines("known", "accuracy", 50) == {"majority": 0.25, "words": 0.6}
    assert lab.lines("known", "accuracy") == {"majority": 0.25, "words": 0.9}


def test_a_verdict_weighs_the_difference_against_both_spreads() -> None:
    wide, narrow = lab.Measured(0.6, 0.2, 4), lab.Measured(0.6, 0.02, 4)
    assert lab.verdict(wide, 0.45) == "within noise" and lab.verdict(narrow, 0.45) == "above"
    assert lab.verdict(lab.Measured(0.6, 0.08, 4), 0.5) == "above"  # 0.08 / 2 for four seeds
    assert lab.verdict(0.45, narrow) == "below" and lab.verdict(narrow, wide) == "within noise"
    assert lab.verdict(lab.band("known", "accuracy", start="scratch"), 0.1) == "unknown"
    assert lab.verdict(lab.counted(0.6, 100), lab.counted(0.5, 100)) == "within noise"
    assert lab.verdict(lab.counted(0.6, 10_000), lab.counted(0.5, 10_000)) == "above"


def test_a_perfect_score_on_few_samples_is_not_certain() -> None:
    assert lab.counted(1.0, 25).sd == pytest.approx(0.02)


def test_a_figure_is_told_with_spread_seeds_and_steps() -> None:
    assert lab.told(lab.band("known", "accuracy")) == "60% ± 14 (2 seeds, 100 steps)"
    assert lab.told(lab.band("known", "accuracy", steps=10)) == "10% (1 seed, 10 steps)"
    assert lab.told(0.25) == "25%" and lab.told(lab.counted(0.5, 100)) == "50% ± 5"
