"""Exercises of notebook 05 and its tables: wrong answers are told their mistake, noise is named."""

from math import inf, isnan, nan, sqrt
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minibeit3 import lab
from minibeit3.lab import ablations
from minibeit3.lab.ablations import T95

NAMES = ["gain_of", "of_the_possible", "seed_margin"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def interval(values, row, paired=None):
    g = torch.Generator().manual_seed(3)
    n = int(row.max()) + 1
    drawn = torch.randint(n, (2000, n), generator=g)
    count = torch.bincount(row).double()
    sums = torch.zeros(n, dtype=torch.float64).index_add(0, row, values)
    means = sums[drawn].sum(1) / count[drawn].sum(1)
    return means.quantile(0.025).item(), means.quantile(0.975).item()


def by_place(right, other, row):
    d = right.double() - other.double()
    return d.mean().item(), *interval(d, torch.arange(len(d)))


def unpaired(right, other, row):
    (a, b), (c, d) = (interval(x.double(), row) for x in (right, other))
    half = sqrt((b - a) ** 2 + (d - c) ** 2) / 2
    gain = (right.double() - other.double()).mean().item()
    return gain, gain - half, gain + half


def by_caption(right, other, row):
    d = right.double() - other.double()
    means = torch.stack([d[row == r].mean() for r in row.unique()])
    return means.mean().item(), *interval(means, torch.arange(len(means)))


def alone(right, other, row):
    return right.double().mean().item(), *interval(right.double(), row)


def flipped(right, other, row):
    return unpaired(other, right, row)


def a_point(right, other, row):
    gain = (right.double() - other.double()).mean().item()
    return gain, gain, gain


def one_sigma(right, other, row):
    d = right.double() - other.double()
    low, high = interval(d, row)
    gain, half = d.mean().item(), (high - low) / 4
    return gain, gain - half, gain + half


def only_gain(right, other, row):
    return (right.double() - other.double()).mean().item()


def pooled(first, second):
    squares = sum((v - mean(s)) ** 2 for s in (first, second) for v in s)
    return sqrt(squares / max(len(first) + len(second) - 2, 1e-300))


def margin(t=None, root=True, spread=pooled, sign=1):
    def rule(first, second):
        n, m = len(first), len(second)
        factor = T95[n + m - 2] if t is None else t
        half = factor * spread(first, second) * (sqrt(1 / n + 1 / m) if root else 1)
        return sign * (mean(second) - mean(first)), half

    return rule


def of_all(first, second):
    free = len(first) + len(second) - 2
    return pooled(first, second) * sqrt(free / (free + 2))


def larger(first, second):
    return max(stdev(first), stdev(second))


def finite_alone(first, second):
    return margin()(first, second) if len(first) + len(second) > 2 else (0.1, 0.0)


def share(right, blind, seen):
    return (right - blind) / (seen - blind)


WRONG = [
    ("gain_of", by_place, "draw whole captions"),
    ("gain_of", unpaired, "place by place"),
    ("gain_of", by_caption, "each caption first"),
    ("gain_of", alone, "A gain is a difference"),
    ("gain_of", flipped, "The sign"),
    ("gain_of", a_point, "drawn other captions"),
    ("gain_of", one_sigma, "2.5th"),
    ("gain_of", only_gain, "three numbers"),
    ("of_the_possible", lambda r, b, s: r / s, "by the ceiling alone"),
    ("of_the_possible", lambda r, b, s: r - b, "distance in points"),
    ("of_the_possible", lambda r, b, s: (r - b) / (1 - b), "not at 1"),
    ("of_the_possible", lambda r, b, s: max(0, share(r, b, s)), "cut it off"),
    ("of_the_possible", share, "divide by zero"),
    ("of_the_possible", lambda r, b, s: share(r, b, s) if s > b else 0.0, "is nan, not 0.0"),
    ("seed_margin", margin(root=False), "single run"),
    ("seed_margin", margin(t=1.0), "standard error"),
    ("seed_margin", margin(t=1.96), "known spreads"),
    ("seed_margin", margin(t=2), "known spreads"),
    ("seed_margin", margin(spread=of_all), "two means were taken"),
    ("seed_margin", margin(spread=larger), "pool both spreads"),
    ("seed_margin", margin(sign=-1), "The sign"),
    ("seed_margin", finite_alone, "margin is infinite, not 0.0"),
    ("seed_margin", lambda a, b: mean(b) - mean(a), "two numbers"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_numpy(right, other, row):
    rng = np.random.default_rng(1)
    d, rows = np.asarray(right, float) - np.asarray(other, float), np.asarray(row)
    of = [d[rows == r] for r in np.unique(rows)]
    means = [
        np.concatenate([of[i] for i in rng.integers(len(of), size=len(of))]).mean()
        for _ in range(400)
    ]
    return d.mean(), *np.percentile(means, (2.5, 97.5))


def possible(right, blind, seen):
    way = seen - blind
    return nan if way <= 0 else 1 - (seen - right) / way


def seeds(first, second):
    free = len(first) + len(second) - 2
    if not free:
        return second[0] - first[0], inf
    return margin()(first, second)


RIGHT = [("gain_of", by_numpy), ("of_the_possible", possible), ("seed_margin", seeds)]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message


def run(arm: str, seed: int, value: float, steps: int = 100) -> dict:
    return {"arm": arm, "seed": seed, "steps": steps, "figures": {"gain": value}, "curve": []}


STUDY = {
    "budget": {"steps": 100},
    "runs": [
        *(run("base", s, v) for s, v in enumerate((0.40, 0.44, 0.42))),
        *(run("near", s, v) for s, v in enumerate((0.41, 0.45, 0.43))),
        *(run("worse", s, v) for s, v in enumerate((0.10, 0.14, 0.12))),
        run("worse", 0, 0.9, steps=7),  # another budget: no seed of this comparison
        run("once", 0, 0.9),
        *(run("budget 3", s, v, steps=300) for s, v in enumerate((0.7, 0.8, 0.75))),
    ],
}


def test_noise_is_told_from_an_effect_and_an_arm_that_did_not_run_is_left_out() -> None:
    rows = ablations.compared(STUDY, "gain", ["near", "worse", "lost", "budget 3"])
    assert {row.arm: row.verdict for row in rows} == {
        "near": "within noise",
        "worse": "below",
        "budget 3": "above",
    }
    assert len(rows[1].values) == 3 and ablations.compared(STUDY, "none such", ["near"]) == []
    alone = {"budget": {"steps": 100}, "runs": [run("base", 0, 0.4), run("once", 0, 0.9)]}
    assert [r.verdict for r in ablations.compared(alone, "gain", ["once"])] == ["unknown"]


def test_an_arm_of_two_dtypes_stands_beside_the_base_of_both() -> None:
    """Else what the dtype does would pass for what the arm does."""
    of_both = [run("float32", s, v) | {"dtype": "float32"} for s, v in enumerate((0.8, 0.82, 0.84))]
    mixed = [run("mixed", s, v) for s, v in enumerate((0.41, 0.80, 0.83))]
    mixed = [mixed[0] | {"dtype": "bfloat16"}, *(r | {"dtype": "float32"} for r in mixed[1:])]
    study = STUDY | {"runs": [*STUDY["runs"], *of_both, *mixed]}
    near, both, dtype = ablations.compared(study, "gain", ["near", "mixed", "float32"])
    assert near.difference == pytest.approx(0.01) and dtype.difference == pytest.approx(0.40)
    assert both.difference == pytest.approx(0.68 - 0.62)


def test_predictions_are_judged_and_others_than_the_three_refused() -> None:
    rows = ablations.compared(STUDY, "gain", ["near", "worse"])
    text = ablations.told(rows, {"near": "above", "worse": "below"})
    assert "near" in text and "within noise; you said above\n" in text
    assert text.endswith("below; you said below: right")
    assert "you said" not in ablations.told(rows, {"near": "?"})
    assert ablations.told(rows, {"lost": "?"}).splitlines()[-1].split() == [
        "lost",
        *["did", "not", "run"],
    ]
    with pytest.raises(ValueError, match="better"):
        ablations.told(rows, {"near": "better"})


def test_without_a_study_everything_is_empty_and_says_so(tmp_path) -> None:
    study = ablations.read_study(tmp_path / "none.json")
    assert ablations.compared(study, "gain", ["near"]) == []
    assert "no runs" in ablations.told([])


def test_the_margin_holds_the_truth_in_95_of_100_cases() -> None:
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(2000, 6, generator=g).tolist()
    inside = [abs(d) <= m for d, m in (ablations.seed_margin(x[:3], x[3:]) for x in drawn)]
    assert 0.93 < mean(map(float, inside)) < 0.97


def test_the_picture_has_a_dot_for_every_seed_and_colour_only_beyond_noise() -> None:
    _, ax = plt.subplots()
    rows = ablations.compared(STUDY, "gain", ["near", "worse", "budget 3"])
    ablations.forest(ax, STUDY, "gain", rows, "gain")
    lines = [(str(line.get_color()), np.asarray(line.get_xdata())) for line in ax.lines]
    dots = {colour: points for colour, points in lines if len(points) == 3}
    assert dots.keys() == {"#000000", "#777777", "#D55E00", "#0072B2"}  # base, noise, below, above
    assert list(dots["#D55E00"]) == pytest.approx([10, 14, 12])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", *(r.arm for r in rows)]
    plt.close()


def test_a_picture_counts_as_found_only_from_where_it_stays_ahead() -> None:
    curve = [(1, 0.1, 0.1), (2, 0.5, 0.1), (3, 0.2, 0.2), (4, 0.6, 0.1), (5, 0.7, 0.2)]
    assert ablations.found_at(curve) == 4
    assert isnan(ablations.found_at(curve[:3])) and isnan(ablations.found_at([]))
