"""Exercises of notebook 08."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from minibeit3.lab.exercises import Exercise, register
from minibeit3.recipes.binding import winoground


def question_only(heard: Sequence[tuple[str, str]], asked: Sequence[str]) -> list[str]:
    """The most frequent answer that was heard to each very question, pictures unseen.

    heard: (question, answer). A question that was never heard gets the most frequent answer of all.
    """
    counts: dict[str, Counter[str]] = {}
    for question, answer in heard:
        counts.setdefault(question, Counter())[answer] += 1
    overall = sum(counts.values(), Counter())
    return [counts.get(question, overall).most_common(1)[0][0] for question in asked]


# How often each answer is heard to each question: no ties, and "no" is the most frequent of all.
HEARD = {
    "is it red?": {"yes": 3, "partly": 1},
    "is it big?": {"no": 7, "yes": 2},
    "what is it?": {"ball": 2, "cube": 5, "cone": 1},
    "how many?": {"two": 1},
}
NEW = ("is it green?", "where is it?")


def _check_question_only(own: Callable[[list[tuple[str, str]], list[str]], list[str]]) -> None:
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        heard = [(q, a) for q, said in HEARD.items() for a, n in said.items() for _ in range(n)]
        heard = [heard[i] for i in torch.randperm(len(heard), generator=g).tolist()]
        for asked in ([*HEARD], [*HEARD, *NEW] * (1 + seed)):
            found = own(list(heard), list(asked))
            assert isinstance(found, list | tuple), f"Return a list, not {type(found).__name__}."
            assert len(found) == len(asked), (
                f"{len(asked)} questions were asked, you gave {len(found)} answers: one each."
            )
            for question, told in zip(asked, found, strict=True):
                _compare_answer(question, told, seed)


def _compare_answer(question: str, told: str, seed: int) -> None:
    said = HEARD.get(question)
    if said is None:
        assert told == "no", (
            f"{question!r} was never heard, you say {told!r}. The best guess is then the most "
            "frequent answer of all: 'no'."
        )
        return
    best = max(said, key=said.__getitem__)
    if told == best:
        return
    assert told != "no", (
        f"{question!r}: you say 'no', the most frequent answer of all. Count the answers of each "
        "question by itself."
    )
    assert told in said, f"{question!r}: {told!r} was never heard to it."
    raise AssertionError(
        f"{question!r} was answered {said}. You say {told!r}; the most frequent is {best!r}."
    )


def twin_score(right: Mapping[str, bool], twins: Mapping[str, str | None]) -> float:
    """Share of twin pairs that are both right.

    right: question's key -> True = answered rightly. twins: key -> key of its twin, None = none.
    Questions without a twin, or whose twin was not asked, do not count.
    """
    both = [
        right[key] and right[twin]
        for key, twin in twins.items()
        if key in right and twin is not None and twin in right
    ]
    return sum(both) / len(both)


def _check_twins(own: Callable[[dict[str, bool], dict[str, str | None]], float]) -> None:
    for seed, pairs in enumerate((6, 9, 14)):
        g = torch.Generator().manual_seed(seed)
        hits = (torch.rand(pairs, 2, generator=g) < 0.6).tolist()
        hits[0], hits[1], hits[2] = [True, True], [True, False], [False, False]
        right = {f"{i}{side}": hits[i][k] for i in range(pairs) for k, side in enumerate("ab")}
        twins: dict[str, str | None] = {f"{i}a": f"{i}b" for i in range(pairs)}
        twins |= {f"{i}b": f"{i}a" for i in range(pairs)}
        wanted = twin_score(right, twins)
        given = dict(right), dict(twins)
        _compare_twins(own(*given), right, twins, f"{pairs} pairs")
        # Lone questions, and a twin that was not asked.
        right |= {"single": True, "alone": True, "lone": True}
        twins |= {"single": None, "alone": None, "lone": "never asked"}
        found = own(dict(right), dict(twins))
        assert abs(float(found) - wanted) < 1e-6, (
            f"With three right questions that have no twin among those asked you get {found:.3f}, "
            f"not {wanted:.3f}: they are no pairs, leave them out."
        )


def _compare_twins(
    found: float, right: Mapping[str, bool], twins: Mapping[str, str | None], case: str
) -> None:
    assert isinstance(found, float | int), f"Return a number, not {type(found).__name__}."
    wanted, pairs = twin_score(right, twins), len(twins) // 2
    hits = [(right[a], right[b]) for a, b in twins.items() if b is not None]

    def near(value: float) -> bool:
        return abs(found - value) < 1e-6

    assert found <= 1, f"{case}: {found} is no share. Divide by the number of pairs."
    if near(wanted):
        return
    assert not near(sum(a for a, _ in hits) / len(hits)), (
        f"{case}: that is the share of right questions. A pair counts when both are right."
    )
    assert not near(sum(a or b for a, b in hits) / len(hits)), (
        f"{case}: a pair with one right answer counted. Both must be right."
    )
    assert not near(sum(a == b for a, b in hits) / len(hits)), (
        f"{case}: pairs that are both wrong counted too."
    )
    assert not near(wanted / 2), (
        f"{case}: there are {pairs} pairs, not {2 * pairs}: each is in `twins` from both sides."
    )
    raise AssertionError(f"{case}: {wanted:.3f} of the pairs are both right, you say {found:.3f}.")


def binding_scores(scores: Tensor) -> tuple[float, float, float]:
    """Text, image and group score; scores float (items, pictures 2, captions 2), i with i is true.

    A tie is not a preference.
    """
    found = winoground(scores)
    text, image, group = (sum(found[k]) / len(scores) for k in ("text", "image", "group"))
    return text, image, group


def _check_binding(own: Callable[[Tensor], Sequence[float]]) -> None:
    for seed, items in enumerate((24, 40, 61)):
        g = torch.Generator().manual_seed(seed)
        scores = torch.randn(items, 2, 2, generator=g)
        scores += torch.tensor([[0.6, 0.0], [0.0, 0.6]])
        scores[: items // 3, :, 1] += 1.5  # captions that are liked whatever the picture
        _compare_binding(own(scores.clone()), scores, f"{items} items")
        tied = own(torch.zeros(items, 2, 2))
        assert all(float(x) == 0 for x in tied), (
            f"A model that says the same of everything gets {[round(float(x), 2) for x in tied]}: "
            "equal scores are no preference, compare with > and not with >=."
        )


def _compare_binding(found: Sequence[float], scores: Tensor, case: str) -> None:
    assert isinstance(found, tuple | list) and len(found) == 3, (
        "Return three numbers: text, image and group score."
    )
    told, wanted = [float(x) for x in found], list(binding_scores(scores))

    def near(place: int, value: float) -> bool:
        return abs(told[place] - value) < 1e-6

    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    text, image = own > other, own > other.flip(1)
    if all(near(i, w) for i, w in enumerate(wanted)):
        return
    assert not (near(0, wanted[1]) and near(1, wanted[0])), (
        f"{case}: text and image are exchanged. Text score: each picture stays (first index), and "
        "its own caption must score higher."
    )
    assert not near(0, text.float().mean().item()), (
        f"{case}: you counted pictures. An item counts when both of its pictures are right."
    )
    assert not near(0, text[:, 0].float().mean().item()), (
        f"{case}: you looked at the first picture only. Both must prefer their own caption."
    )
    assert near(0, wanted[0]), f"{case}: the text score is {wanted[0]:.3f}, you say {told[0]:.3f}."
    assert near(1, wanted[1]), f"{case}: the image score is {wanted[1]:.3f}, you say {told[1]:.3f}."
    assert not near(2, wanted[0] * wanted[1]) and not near(2, min(wanted[:2])), (
        f"{case}: the group score asks each item for both; it does not follow from the two means."
    )
    assert not near(2, (own.sum(1) > other.sum(1)).float().mean().item()), (
        f"{case}: sums hide a wrong comparison behind a large right one. Ask for all four."
    )
    assert not near(2, (text.all(1) | image.all(1)).float().mean().item()), (
        f"{case}: group means text and image, you took one or the other."
    )
    raise AssertionError(f"{case}: the group score is {wanted[2]:.3f}, you say {told[2]:.3f}.")


register(
    Exercise(
        name="question_only",
        difficulty=1,
        minutes=7,
        check=_check_question_only,
        hints=(
            "Keep one Counter of answers for each question, in a dict.",
            "A Counter of all answers together serves the questions that were never heard.",
            "counts.get(question, overall).most_common(1)[0][0]",
        ),
        reference=question_only,
    )
)
register(
    Exercise(
        name="twin_score",
        difficulty=1,
        minutes=5,
        check=_check_twins,
        hints=(
            "Go through twins.items(); skip a pair when the twin is None or not in `right`.",
            "A pair counts when right[key] and right[twin].",
            "Each pair comes from both sides; the share is the same, since both counts double.",
        ),
        reference=twin_score,
    )
)
register(
    Exercise(
        name="binding_scores",
        difficulty=2,
        minutes=8,
        check=_check_binding,
        hints=(
            "scores[:, 0, 0] is the first picture with its own caption, scores[:, 0, 1] with the "
            "other's.",
            "text = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0]), one bool for each item.",
            "image compares along the other index; group = text & image. Then take means.",
        ),
        reference=binding_scores,
    )
)
