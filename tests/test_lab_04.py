"""Exercises of notebook 04: wrong answers are told their mistake, other right ones pass."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import lab

NAMES = ["hidden_loss", "rate_at", "blind_chance"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def every(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


def everywhere(logits, targets, hidden):
    return every(logits, targets).mean()


def over_all_places(logits, targets, hidden):
    return (every(logits, targets) * hidden.flatten()).mean()


def times_mask(logits, targets, hidden):
    return (every(logits, targets) * hidden.flatten()).sum() / hidden.sum()


def text_by_text(logits, targets, hidden):
    rows = zip(logits, targets, hidden, strict=True)
    return torch.stack([F.cross_entropy(x[h], t[h]) for x, t, h in rows]).mean()


def total(logits, targets, hidden):
    return F.cross_entropy(logits[hidden], targets[hidden], reduction="sum")


def praise(logits, targets, hidden):
    return -F.cross_entropy(logits[hidden], targets[hidden])


def naive(logits, targets, hidden):
    chance = logits[hidden].exp() / logits[hidden].exp().sum(dim=-1, keepdim=True)
    return -chance.gather(1, targets[hidden][:, None]).log().mean()


def bits(logits, targets, hidden):
    return F.cross_entropy(logits[hidden], targets[hidden]) / math.log(2)


def rate(start=0, line=None, turn=1.0, shift=True, floored=True, straight=False):
    def at(step, steps, warmup, peak, floor):
        if step < warmup:
            return peak * (step + start) / (line or warmup - 1)
        done = (step - warmup * shift) / (steps - warmup * shift)
        floor = floor if floored else 0.0
        fall = 1 - done if straight else (1 + math.cos(turn * math.pi * done)) / 2
        return floor + (peak - floor) * fall

    return at


def fitting(captions, shown):
    words = shown.split()
    heard = [c.split() for c in captions if len(c.split()) == len(words)]
    return [c for c in heard if all(w in ("[mask]", x) for w, x in zip(words, c, strict=True))]


def best(fits, words):
    counted = [Counter(c[i] for c in fits) for i, w in enumerate(words) if w == "[mask]"]
    return [c.most_common(1)[0][1] / c.total() for c in counted]


def each_once(captions, shown):
    return best(fitting(sorted(set(captions)), shown), shown.split())


def deaf(captions, shown):
    words = shown.split()
    return best(fitting(captions, " ".join(["[mask]"] * len(words))), words)


def together(captions, shown):
    counted = Counter(map(tuple, fitting(captions, shown)))
    return [counted.most_common(1)[0][1] / counted.total()] * shown.split().count("[mask]")


def one_number(captions, shown):
    return best(fitting(captions, shown), shown.split())[:1]


def of_all(captions, shown):
    share = len(fitting(captions, shown)) / len(captions)
    return [share * chance for chance in best(fitting(captions, shown), shown.split())]


WRONG = [
    ("hidden_loss", everywhere, "mean over all places"),
    ("hidden_loss", over_all_places, "are hidden"),
    ("hidden_loss", times_mask, "0 * NaN"),
    ("hidden_loss", text_by_text, "each text first"),
    ("hidden_loss", total, "That is the sum"),
    ("hidden_loss", praise, "The sign"),
    ("hidden_loss", naive, "overflow"),
    ("hidden_loss", bits, "to base e"),
    ("hidden_loss", lambda x, t, h: every(x, t)[h.flatten()], "one number"),
    ("rate_at", rate(start=1), "step 0 has the rate 0"),
    ("rate_at", lambda s, n, w, p, f: rate(line=w)(s, n, w, p, f), "last of the warm-up"),
    ("rate_at", rate(shift=False), "not from 0"),
    ("rate_at", rate(turn=0.5), "Half a turn"),
    ("rate_at", rate(turn=2.0), "Half a turn"),
    ("rate_at", rate(floored=False), "not 0.0001"),
    ("rate_at", rate(straight=True), "falls slowly at first"),
    ("blind_chance", each_once, "counted each caption once"),
    ("blind_chance", deaf, "forgot the visible words"),
    ("blind_chance", together, "by itself"),
    ("blind_chance", one_number, "one each"),
    ("blind_chance", of_all, "Keep the captions of the same length"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_logsumexp(logits, targets, hidden):
    at = hidden.nonzero(as_tuple=True)
    chosen = logits[at]
    right = chosen[torch.arange(len(chosen)), targets[at]]
    return (chosen.logsumexp(dim=1) - right).sum() / len(chosen)


def blind(captions, shown):
    return best(fitting(captions, shown), shown.split())


RIGHT = [("hidden_loss", by_logsumexp), ("rate_at", rate()), ("blind_chance", blind)]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message
