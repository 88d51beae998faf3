"""Exercises of notebook 05."""

from collections.abc import Callable, Sequence
from math import inf, isfinite, sqrt
from statistics import mean, stdev

import torch
from torch import Tensor

from minibeit3.lab.ablations import T95, seed_margin
from minibeit3.lab.exercises import Exercise, register
from minibeit3.probes_score import score


def gain_of(right: Tensor, other: Tensor, row: Tensor) -> tuple[float, float, float]:
    """(gain, low, high): share right in `right` less that in `other`, with its 95% interval.

    right, other: bool (n,), the same n hidden places guessed with two pictures; row: int64 (n,),
    the caption that a place belongs to. Captions are drawn anew, with all their places.
    """
    found = score(right.double() - other.double(), row)
    return found.accuracy, found.low, found.high


def _places(g: torch.Generator, captions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Guesses of captions with 1 to 12 hidden places that are right or wrong together."""
    row = torch.arange(captions).repeat_interleave(torch.randint(1, 13, (captions,), generator=g))
    right = (torch.rand(captions, generator=g) < 0.6)[row]
    other = right & (torch.rand(captions, generator=g) < 0.6)[row]
    flips = torch.rand(len(row), generator=g) < 0.05
    return right ^ flips, other, row


def _bootstrap(values: Tensor, row: Tensor, by_place: bool) -> tuple[float, float]:
    found = score(values, torch.arange(len(values)) if by_place else row)
    return found.low, found.high


def _check_gain(own: Callable[[Tensor, Tensor, Tensor], tuple[float, float, float]]) -> None:
    for seed, captions in enumerate((150, 220, 90)):
        right, other, row = _places(torch.Generator().manual_seed(seed), captions)
        found = own(right.clone(), other.clone(), row.clone())
        assert isinstance(found, tuple | list) and len(found) == 3, (
            "Return three numbers: the gain, and the two ends of its interval."
        )
        gain, low, high = (float(value) for value in found)
        wanted, *ends = gain_of(right, other, row)
        assert abs(gain + wanted) > 1e-6, "The sign: `right` less `other`."
        assert abs(gain - right.double().mean().item()) > 1e-6, (
            "That is the accuracy of `right` alone. A gain is a difference: take `other` off."
        )
        difference = right.double() - other.double()
        by_caption = torch.stack([difference[row == r].mean() for r in row.unique()]).mean().item()
        assert abs(gain - by_caption) > 1e-6 or abs(by_caption - wanted) < 1e-6, (
            "You took the mean of each caption first. Every hidden place counts the same."
        )
        assert abs(gain - wanted) < 1e-6, f"Here the gain is {wanted:.4f}, you have {gain:.4f}."
        assert low <= gain <= high, (
            f"The interval {low:.3f} to {high:.3f} does not hold the gain {gain:.3f}."
        )
        width, true = high - low, ends[1] - ends[0]
        narrow = _bootstrap(difference, row, by_place=True)
        assert not abs(width - (narrow[1] - narrow[0])) < 0.06 * true, (
            "You drew places anew. Those of one caption are guessed from the same words and "
            "picture, so they err together: draw whole captions."
        )
        apart = sqrt(
            sum(
                (b - a) ** 2
                for a, b in (_bootstrap(x.double(), row, False) for x in (right, other))
            )
        )
        assert not (abs(width - apart) < 0.12 * true < apart - true), (
            "You drew the captions for each picture by themselves. Both were asked the same "
            "places: take the difference place by place, then draw."
        )
        assert width > 0.1 * true, (
            f"Your interval is {width:.3f} wide, about {true:.3f} is right. How far would the gain "
            "move if you had drawn other captions?"
        )
        assert abs(width - true) < 0.2 * true, (
            f"Your interval is {width:.3f} wide, expected is about {true:.3f}: from the 2.5th to "
            "the 97.5th percentile of the gains of captions drawn anew."
        )


def of_the_possible(right: float, blind: float, seen: float) -> float:
    """How much of the way from the best blind guess to the best seeing one; 0 at blind, 1 at seen.

    Where seeing cannot help (seen = blind) there is no way to go, and the answer is nan.
    """
    return (right - blind) / (seen - blind) if seen > blind else float("nan")


def _check_possible(own: Callable[[float, float, float], float]) -> None:
    g = torch.Generator().manual_seed(5)
    for _ in range(20):
        blind, rest, at = (v.item() for v in torch.rand(3, generator=g, dtype=torch.float64))
        seen = blind + (1 - blind) * (0.2 + 0.8 * rest)
        right = blind + (seen - blind) * (1.6 * at - 0.4)
        found, wanted = own(right, blind, seen), of_the_possible(right, blind, seen)
        told = f"right {right:.3f}, blind {blind:.3f}, seen {seen:.3f}"
        assert isinstance(found, float | int), f"Return a number, not {type(found).__name__}."
        assert abs(found - right / seen) > 1e-9, (
            f"{told}: you divided by the ceiling alone, so a model without eyes gets "
            f"{blind / seen:.2f} for nothing. Measure from the blind line."
        )
        assert abs(found - (right - blind)) > 1e-9, (
            f"{told}: that is the distance in points. Divide it by the greatest possible one."
        )
        assert abs(found - (right - blind) / (1 - blind)) > 1e-9 or abs(seen - 1) < 1e-9, (
            f"{told}: nobody can be right always; the way ends at the ceiling {seen:.3f}, not at 1."
        )
        assert wanted >= 0 or found != 0, (
            f"{told}: the model is worse than a blind guess. Say so: the share is {wanted:.3f}, do "
            "not cut it off at 0."
        )
        assert abs(found - wanted) < 1e-9, (
            f"{told}: the share is {wanted:.3f}, you say {found:.3f}."
        )
    try:
        flat = own(0.7, 0.6, 0.6)
    except ZeroDivisionError:
        raise AssertionError(
            "Where seeing cannot help (seen = blind), you divide by zero: answer nan."
        ) from None
    assert flat != flat, f"Where seeing cannot help (seen = blind) the answer is nan, not {flat}."


def _check_margin(own: Callable[[Sequence[float], Sequence[float]], tuple[float, float]]) -> None:
    g = torch.Generator().manual_seed(7)
    for sizes in ((3, 3), (3, 5), (2, 4), (6, 5)):
        first, second = (torch.rand(n, generator=g, dtype=torch.float64).tolist() for n in sizes)
        second = [0.3 + 2 * value for value in second]
        found, (difference, margin) = own(list(first), list(second)), seed_margin(first, second)
        told = f"{sizes[0]} and {sizes[1]} seeds"
        assert isinstance(found, tuple | list) and len(found) == 2, (
            "Return two numbers: the difference and its margin."
        )
        assert abs(found[0] + difference) > 1e-9, "The sign: mean of `second` less mean of `first`."
        assert abs(found[0] - difference) < 1e-9, (
            f"{told}: the difference of the means is {difference:.4f}, you have {found[0]:.4f}."
        )
        free, (n, m) = sum(sizes) - 2, sizes
        sums = [sum((v - mean(s)) ** 2 for v in s) for s in (first, second)]
        pooled = sqrt(sum(sums) / free)
        root, t = sqrt(1 / n + 1 / m), T95[free]

        def near(value: float, ours: float = float(found[1])) -> bool:
            return abs(ours - value) < 1e-3 * abs(value)

        assert not near(t * pooled), (
            f"{told}: that is the margin of a single run. Means of several vary less: multiply by "
            "sqrt(1/n + 1/m)."
        )
        assert not near(pooled * root), (
            f"{told}: that is the standard error. How many of them hold 95 of 100 cases says T95."
        )
        assert not near(1.96 * pooled * root) and not near(2 * pooled * root), (
            f"{told}: 1.96 is for known spreads. From so few seeds the spread itself is a guess: "
            f"with {free} degrees of freedom it takes {t}."
        )
        assert not near(t * sqrt(sum(sums) / (n + m)) * root), (
            f"{told}: divide the squares by {n + m} - 2: two means were taken from the same values."
        )
        largest = max(stdev(first), stdev(second))
        assert not near(t * largest * root), f"{told}: pool both spreads, do not take the larger."
        assert near(margin), (
            f"{told}: the margin is {margin:.4f}, you have {found[1]:.4f}. It is "
            "T95[n + m - 2] * s * sqrt(1/n + 1/m), s² = all squared deviations from the own "
            "mean, over n + m - 2."
        )
    try:
        lone = own([0.4], [0.5])[1]
    except (ZeroDivisionError, ValueError) as error:
        raise AssertionError(
            f"With one seed each it raised {type(error).__name__}. One run says nothing about the "
            "spread: the margin is infinite."
        ) from None
    assert lone == inf and not isfinite(lone), (
        f"With one seed each the margin is infinite, not {lone}: one run says nothing about spread."
    )


register(
    Exercise(
        name="gain_of",
        difficulty=2,
        minutes=8,
        check=_check_gain,
        hints=(
            "difference = right.double() - other.double(): -1, 0 or 1 at each place. Its mean is "
            "the gain.",
            "For the interval, draw as many captions as there are, with replacement, 1000 times.",
            "Sums and counts per caption suffice: index_add over `row`, then sums[drawn].sum(1) / "
            "counts[drawn].sum(1), and the quantiles 0.025 and 0.975 of that.",
        ),
        reference=gain_of,
    )
)
register(
    Exercise(
        name="of_the_possible",
        difficulty=1,
        minutes=4,
        check=_check_possible,
        hints=(
            "A blind guesser should get 0, the best seeing one 1.",
            "How far from the blind line, over how far one can come.",
            "If seen == blind there is no way to go: float('nan').",
        ),
        reference=of_the_possible,
    )
)
register(
    Exercise(
        name="seed_margin",
        difficulty=2,
        minutes=8,
        check=_check_margin,
        hints=(
            "Each arm has its own mean. Square how far each of its seeds is from it, add up both.",
            "Divide by n + m - 2 and take the root: the spread of one run.",
            "A mean of n runs varies by that over sqrt(n); two means' difference by sqrt(1/n + "
            "1/m) times it. T95[n + m - 2] of these are the margin; T95[0] is infinite.",
        ),
        reference=seed_margin,
    )
)
