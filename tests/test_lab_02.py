"""Exercises of notebook 02: wrong answers are told their mistake, other right ones pass."""

import math

import pytest
import torch

from minibeit3 import lab

NAMES = ["hide_exactly", "one_block", "hide_words"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def coins(grid, count, generator):
    return torch.rand(grid, grid, generator=generator) < count / grid**2


def visible(grid, count, generator):
    order = torch.randperm(grid * grid, generator=generator)
    return (order >= count).view(grid, grid)


def unseeded(grid, count, generator):
    return (torch.randperm(grid * grid) < count).view(grid, grid)


def one_run(grid, count, generator):
    start = int(torch.randint(grid * grid - count, (), generator=generator))
    places = torch.arange(grid * grid)
    return ((places >= start) & (places < start + count)).view(grid, grid)


def block(turned=False, cut=False, short=0, hollow=False):
    def draw(grid, area, aspect, generator):
        aspect = 1 / aspect if turned else aspect
        sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
        height, width = (int(s) if cut else round(s) for s in sides)
        top = int(torch.randint(grid - height + 1 - short, (), generator=generator))
        left = int(torch.randint(grid - width + 1 - short, (), generator=generator))
        hidden = torch.zeros(grid, grid, dtype=torch.bool)
        hidden[top : top + height, left : left + width] = True
        if hollow:
            hidden[top + 1 : top + height - 1, left + 1 : left + width - 1] = False
        return hidden

    return draw


def anywhere(text, count, mask_id, generator):
    found = text.clone()
    found[torch.randperm(len(text), generator=generator)[:count]] = mask_id
    return found


def in_place(text, count, mask_id, generator):
    places = (text > 2).nonzero().flatten()
    text[places[torch.randperm(len(places), generator=generator)[:count]]] = mask_id
    return text


def half(text, count, mask_id, generator):
    gone = (torch.rand(len(text), generator=generator) < 0.5) & (text > 2)
    return text.masked_fill(gone, mask_id)


def first(text, count, mask_id, generator):
    found = text.clone()
    found[1 : count + 1] = mask_id
    return found


WRONG = [
    ("hide_exactly", coins, "only on average"),
    ("hide_exactly", visible, "marked the visible"),
    ("hide_exactly", unseeded, "pass `generator`"),
    ("hide_exactly", one_run, "more often than others"),
    ("hide_exactly", lambda n, c, g: coins(n, c, g).float(), "bool mask"),
    ("one_block", block(turned=True), "other way round"),
    ("one_block", block(cut=True), "do not cut them off"),
    ("one_block", block(short=1), "never hidden"),
    ("one_block", block(hollow=True), "full rectangle"),
    ("hide_words", anywhere, "specials 0, 1, 2"),
    ("hide_words", in_place, "clone it first"),
    ("hide_words", half, "Asked for 2 hidden words of 5"),
    ("hide_words", first, "never hidden"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_rank(grid, count, generator):
    chance = torch.rand(grid * grid, generator=generator)
    hidden = torch.zeros(grid * grid, dtype=torch.bool)
    hidden[chance.topk(count).indices] = True
    return hidden.reshape(grid, grid)


def outer(grid, area, aspect, generator):
    def run(length):
        start = torch.randint(0, grid - length + 1, (1,), generator=generator)
        places = torch.arange(grid)
        return (places >= start) & (places < start + length)

    width = math.sqrt(area / aspect)
    return run(round(width * aspect))[:, None] & run(round(width))


def by_weight(text, count, mask_id, generator):
    chosen = torch.multinomial((text > 2).float(), count, generator=generator)
    return text.scatter(0, chosen, mask_id)


RIGHT = [("hide_exactly", by_rank), ("one_block", outer), ("hide_words", by_weight)]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message
