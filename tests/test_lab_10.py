"""Exercises of notebook 10: wrong answers are told their mistake, other right ones pass."""

import pytest
import torch

from minibeit3 import lab

NAMES = ["who_sees", "beam_step", "leak_share"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def rule(image, text, own_image=True, words=True, itself=True, later=False):
    size = image + text
    seen = torch.ones(size, size, dtype=torch.bool).tril(0 if itself else -1)
    if own_image:
        seen[:image, :image] = True
    if not words:
        seen[:image, image:] = True
    if later:
        seen[image:, image:] = True
    return seen


def nearest_word(image, text):
    seen = rule(image, text)
    seen[image:, image:] &= torch.ones(text, text, dtype=torch.bool).triu(-1)
    return seen


def blind(image, text):
    seen = rule(image, text)
    seen[image:, 0] = False
    return seen


def places(flat, words):
    return flat // words, flat % words


def step(sums=lambda t, p: t[:, None] + p, largest=True, swap=False, order=1):
    def answer(totals, log_p, beams):
        best, flat = sums(totals, log_p).flatten().topk(beams, largest=largest)
        row, word = places(flat, log_p.shape[1])
        best, row, word = (x.flip(0) if order < 0 else x for x in (best, row, word))
        return (best, word, row) if swap else (best, row, word)

    return answer


def one_each(totals, log_p, beams):
    best, word = (totals[:, None] + log_p).max(dim=1)
    order = best.argsort(descending=True)[:beams]
    return best[order], order, word[order]


def flat_places(totals, log_p, beams):
    best, flat = (totals[:, None] + log_p).flatten().topk(beams)
    return best, flat // log_p.shape[1], flat


def wrong_rows(totals, log_p, beams):
    best, flat = (totals[:, None] + log_p).flatten().topk(beams)
    return best, flat // len(log_p), flat % log_p.shape[1]


def versions(text, place, mask, other, first=None):
    a, b = text.clone(), text.clone()
    b[:, place + 1 if first is None else first :] = other[
        :, place + 1 if first is None else first :
    ]
    a[:, place] = b[:, place] = mask
    return a, b


def leak(guess, text, place, mask, other):
    a, b = versions(text, place, mask, other)
    return (guess(a)[:, place] != guess(b)[:, place]).float().mean().item()


def anywhere(guess, text, place, mask, other):
    a, b = versions(text, place, mask, other)
    return (guess(a) != guess(b)).float().mean().item()


def stays(guess, text, place, mask, other):
    return 1 - leak(guess, text, place, mask, other)


def right_guesses(guess, text, place, mask, other):
    a, b = versions(text, place, mask, other)
    guess(b)
    return (guess(a)[:, place] == text[:, place]).float().mean().item()


def number(guess, text, place, mask, other):
    return leak(guess, text, place, mask, other) * len(text)


def unmasked(guess, text, place, mask, other):
    b = torch.cat([text[:, : place + 1], other[:, place + 1 :]], dim=1)
    return (guess(text)[:, place] != guess(b)[:, place]).float().mean().item()


def all_words(guess, text, place, mask, other):
    a, b = versions(text, place, mask, other, first=0)
    return (guess(a)[:, place] != guess(b)[:, place]).float().mean().item()


def one_too_late(guess, text, place, mask, other):
    a, b = versions(text, place, mask, other, first=place + 2)
    return (guess(a)[:, place] != guess(b)[:, place]).float().mean().item()


def careless(guess, text, place, mask, other):
    text[:, place] = mask
    return leak(guess, text, place, mask, other)


WRONG = [
    ("who_sees", lambda i, t: rule(i, t, own_image=False), "no order in a picture"),
    ("who_sees", lambda i, t: rule(i, t, words=False), "an image token sees a word"),
    ("who_sees", lambda i, t: rule(i, t, itself=False), "does not see itself"),
    ("who_sees", lambda i, t: rule(i, t, later=True), "does not exist yet"),
    ("who_sees", lambda i, t: ~rule(i, t), "Turned round"),
    ("who_sees", lambda i, t: rule(i, t).T, "Transposed"),
    ("who_sees", lambda i, t: rule(i, t).float(), "Return bool"),
    ("who_sees", lambda i, t: rule(i, t)[i:], "you return"),
    ("who_sees", nearest_word, "all words before it"),
    ("who_sees", blind, "the whole image"),
    ("beam_step", step(lambda t, p: p), "what the captions had cost"),
    ("beam_step", step(lambda t, p: t[:, None].exp() + p.exp()), "no exp"),
    ("beam_step", step(lambda t, p: t[:, None] * p), "You multiplied"),
    ("beam_step", step(largest=False), "Those are the worst"),
    ("beam_step", step(order=-1), "The best comes first"),
    ("beam_step", step(swap=True), "swapped"),
    ("beam_step", one_each, "one word per row"),
    ("beam_step", flat_places, "modulo 7"),
    ("beam_step", wrong_rows, "whole part"),
    ("leak_share", anywhere, "at this place alone"),
    ("leak_share", stays, "what stays the same"),
    ("leak_share", right_guesses, "You count right guesses"),
    ("leak_share", number, "is no share"),
    ("leak_share", unmasked, "put <mask> at the place"),
    ("leak_share", all_words, "the words before the place stay"),
    ("leak_share", one_too_late, "ask twice"),
    ("leak_share", careless, "work on a copy"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_comparing(image_len, text_len):
    at = torch.arange(image_len + text_len)
    past = at[None, :] <= at[:, None]
    return past | ((at[:, None] < image_len) & (at[None, :] < image_len))


def by_sorting(totals, log_p, beams):
    every = [
        (float(totals[r] + log_p[r, w]), r, w)
        for r in range(len(totals))
        for w in range(log_p.shape[1])
    ]
    best = sorted(every, reverse=True)[:beams]
    return tuple(torch.tensor(column) for column in zip(*best, strict=True))


def in_one_pass(guess, text, place, mask, other):
    both = torch.cat([text, torch.where(torch.arange(text.shape[1]) > place, other, text)])
    both[:, place] = mask
    first, second = guess(both)[:, place].chunk(2)
    return sum(a != b for a, b in zip(first.tolist(), second.tolist(), strict=True)) / len(text)


RIGHT = [("who_sees", by_comparing), ("beam_step", by_sorting), ("leak_share", leak)]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message
