"""Exercises of notebook 09: wrong answers are told their mistake, other right ones pass."""

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import lab

NAMES = ["matching_loss", "found_within", "class_vectors"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def rows(alike, reduction="mean"):
    return F.cross_entropy(alike, torch.arange(len(alike)), reduction=reduction)


def one_way(image, text, scale):
    return rows(scale * image @ text.T)


def other_way(image, text, scale):
    return rows(scale * text @ image.T)


def added(image, text, scale):
    return one_way(image, text, scale) + other_way(image, text, scale)


def summed(image, text, scale):
    return len(image) * added(image, text, scale) / 2


def unscaled(image, text, scale):
    return added(image, text, 1.0) / 2


def divided(image, text, scale):
    return added(image, text, 1 / scale) / 2


def whole(image, text, scale):
    logs = (scale * image @ text.T).flatten().log_softmax(0)
    return -logs.view(len(image), -1).diagonal().mean()


def naive(image, text, scale):
    e = (scale * image @ text.T).exp()
    return -((e.diagonal() / e.sum(0)).log() + (e.diagonal() / e.sum(1)).log()).mean() / 2


def distances(image, text, scale):
    return (image - text).norm(dim=1).mean()


def every_right(similarity, right, k):
    top = right.gather(1, similarity.topk(k, dim=1).indices)
    return (top.sum(1) == right.sum(1)).float().mean().item()


def part_of_right(similarity, right, k):
    top = right.gather(1, similarity.topk(k, dim=1).indices)
    return (top.sum(1) / right.sum(1)).mean().item()


def easy_ties(similarity, right, k):
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarity > best).sum(1) < k).float().mean().item()


def by_topk(similarity, right, k):
    return right.gather(1, similarity.topk(k, dim=1).indices).any(1).float().mean().item()


def upside_down(similarity, right, k):
    return by_topk(-similarity, right, k)


def number_of_finds(similarity, right, k):
    return found_by_sorting(similarity, right, k) * len(right)


def only_first(similarity, right, k):
    return right.gather(1, similarity.argmax(dim=1, keepdim=True)).float().mean().item()


def middle(embed, names, templates):
    return torch.stack([embed([t.format(n) for t in templates]).mean(0) for n in names])


def one_template(embed, names, templates):
    return embed([templates[0].format(name) for name in names])


def crossed(embed, names, templates):
    every = embed([t.format(name) for t in templates for name in names])
    return F.normalize(every.view(len(names), len(templates), -1).mean(1), dim=-1)


def bare(embed, names, templates):
    return embed(list(names))


def all_texts(embed, names, templates):
    return embed([t.format(name) for name in names for t in templates])


def unfilled(embed, names, templates):
    return embed([template for template in templates for _ in names])


WRONG = [
    ("matching_loss", one_way, "Ask every text for its picture too"),
    ("matching_loss", other_way, "Ask every picture for its text too"),
    ("matching_loss", added, "take their mean"),
    ("matching_loss", summed, "You summed over the 5 rows"),
    ("matching_loss", unscaled, "The scale has no say"),
    ("matching_loss", divided, "You divided by the scale"),
    ("matching_loss", whole, "one softmax over the whole matrix"),
    ("matching_loss", naive, "overflows exp"),
    ("matching_loss", distances, "minus the mean logarithm"),
    ("matching_loss", lambda i, t, s: s * i @ t.T, "Return one number"),
    ("found_within", every_right, "One among the first k is enough"),
    ("found_within", part_of_right, "One is enough"),
    ("found_within", easy_ties, "count those with >="),
    ("found_within", by_topk, "finds everything equally similar"),
    ("found_within", upside_down, "sort downwards"),
    ("found_within", number_of_finds, "is no share"),
    ("found_within", only_first, "have a right one among the first 2"),
    ("class_vectors", middle, "normalise after the mean"),
    ("class_vectors", one_template, "the first template alone"),
    ("class_vectors", crossed, "different classes"),
    ("class_vectors", bare, "Embed each name in each template"),
    ("class_vectors", all_texts, "one row for each class"),
    ("class_vectors", unfilled, "The name is missing"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_logsumexp(image, text, scale):
    alike = scale * (image @ text.T)
    own = alike.diagonal()
    return (alike.logsumexp(0) + alike.logsumexp(1) - 2 * own).mean() / 2


def found_by_sorting(similarity, right, k):
    found = 0
    for row, truth in zip(similarity.tolist(), right.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i, r=row, t=truth: (-r[i], t[i]))
        found += any(truth[i] for i in order[:k])
    return found / len(similarity)


def at_once(embed, names, templates):
    every = embed([t.format(name) for name in names for t in templates])
    mean = every.view(len(names), len(templates), -1).sum(1)
    return mean / mean.norm(dim=1, keepdim=True)


RIGHT = [
    ("matching_loss", by_logsumexp),
    ("found_within", found_by_sorting),
    ("class_vectors", at_once),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message
