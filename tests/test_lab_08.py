"""Exercises of notebook 08: wrong answers are told their mistake, other right ones pass."""

from collections import Counter, defaultdict

import pytest
import torch

from minibeit3 import lab

NAMES = ["question_only", "twin_score", "binding_scores"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def always_the_same(heard, asked):
    return [Counter(a for _, a in heard).most_common(1)[0][0]] * len(asked)


def rarest(heard, asked):
    counts = tables(heard)
    everything = Counter(a for _, a in heard)
    return [(counts[q] or everything).most_common()[-1 if q in counts else 0][0] for q in asked]


def each_answer_once(heard, asked):
    counts = tables(sorted(set(heard), key=lambda h: (h[0], h[1] != "yes", h[1])))
    return [(counts[q] or Counter(["no"])).most_common(1)[0][0] for q in asked]


def yes_when_new(heard, asked):
    counts = tables(heard)
    return [(counts[q] or Counter(["yes"])).most_common(1)[0][0] for q in asked]


def only_known(heard, asked):
    counts = tables(heard)
    return [counts[q].most_common(1)[0][0] for q in asked if counts[q]]


def tables(heard):
    counts = defaultdict(Counter)
    for question, answer in heard:
        counts[question][answer] += 1
    return counts


def shares(count, divide=1.0):
    def score(right, twins):
        pairs = [(right[k], right[t]) for k, t in twins.items() if k in right and t in right]
        return sum(count(a, b) for a, b in pairs) / (len(pairs) * divide)

    return score


def singles_are_right(right, twins):
    return sum(right[k] and right.get(t, True) for k, t in twins.items()) / len(twins)


def s(scores):
    return scores[:, 0, 0], scores[:, 0, 1], scores[:, 1, 0], scores[:, 1, 1]


def both(scores, ties=False):
    a, b, c, d = s(scores)
    if ties:
        return (a >= b) & (d >= c), (a >= c) & (d >= b)
    return (a > b) & (d > c), (a > c) & (d > b)


def means(*parts):
    return tuple(part.float().mean().item() for part in parts)


def exchanged(scores):
    text, image = both(scores)
    return means(image, text, text & image)


def with_ties(scores):
    text, image = both(scores, ties=True)
    return means(text, image, text & image)


def pictures(scores):
    a, b, c, d = s(scores)
    text, image = both(scores)
    return means(torch.stack([a > b, d > c]), torch.stack([a > c, d > b]), text & image)


def first_picture(scores):
    a, b, c, _ = s(scores)
    return means(a > b, a > c, (a > b) & (a > c))


def product(scores):
    text, image = means(*both(scores))
    return text, image, text * image


def sums(scores):
    a, b, c, d = s(scores)
    return (*means(*both(scores)), (a + d > b + c).float().mean().item())


def either(scores):
    text, image = both(scores)
    return means(text, image, text | image)


WRONG = [
    ("question_only", always_the_same, "each question by itself"),
    ("question_only", rarest, "the most frequent is"),
    ("question_only", each_answer_once, "the most frequent is"),
    ("question_only", yes_when_new, "never heard, you say 'yes'"),
    ("question_only", only_known, "one each"),
    ("twin_score", shares(lambda a, b: a), "share of right questions"),
    ("twin_score", shares(lambda a, b: a or b), "Both must be right"),
    ("twin_score", shares(lambda a, b: a == b), "both wrong counted too"),
    ("twin_score", shares(lambda a, b: a and b, 2.0), "from both sides"),
    ("twin_score", lambda r, t: sum(r[k] and r.get(x, False) for k, x in t.items()), "no share"),
    ("twin_score", singles_are_right, "leave them out"),
    ("binding_scores", exchanged, "exchanged"),
    ("binding_scores", with_ties, "equal scores are no preference"),
    ("binding_scores", pictures, "An item counts when both"),
    ("binding_scores", first_picture, "first picture only"),
    ("binding_scores", product, "does not follow from the two means"),
    ("binding_scores", sums, "sums hide"),
    ("binding_scores", either, "one or the other"),
    ("binding_scores", lambda scores: means(both(scores)[0]), "three numbers"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_lists(heard, asked):
    everything = [answer for _, answer in heard]
    told = []
    for question in asked:
        there = [a for q, a in heard if q == question] or everything
        told.append(max(set(there), key=there.count))
    return told


def by_sets(right, twins):
    pairs = {frozenset((k, t)) for k, t in twins.items() if t in right and k in right}
    return sum(all(right[k] for k in pair) for pair in pairs) / len(pairs)


def by_columns(scores):
    wins = scores.diagonal(dim1=1, dim2=2)
    text = (wins > torch.stack([scores[:, 0, 1], scores[:, 1, 0]], 1)).all(1)
    image = (wins > torch.stack([scores[:, 1, 0], scores[:, 0, 1]], 1)).all(1)
    return list(means(text, image, text & image))


RIGHT = [("question_only", by_lists), ("twin_score", by_sets), ("binding_scores", by_columns)]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message
