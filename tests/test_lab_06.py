"""Exercises of notebook 06: wrong answers are told their mistake, other right ones are accepted."""

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import lab
from minibeit3.lab.notebook_06 import mass_inside, roll_out, top_patches


def multiplied(patterns, residual=True, half=True):
    flow = torch.eye(patterns.shape[-1])
    for layer in patterns.mean(dim=1):
        step = layer + torch.eye(len(layer)) * residual
        flow = (step / 2 if half else step) @ flow
    return flow


def parts(weights, inside):
    step = inside.shape[0] // weights.shape[0]
    return F.avg_pool2d(inside.float()[None], step)[0]


def threshold(weights, count):
    return weights >= weights.sort(dim=1, descending=True).values[:, count - 1 : count]


def over_all(weights, count):
    flat = torch.zeros(weights.numel(), dtype=torch.bool)
    flat[weights.flatten().topk(count * len(weights)).indices] = True
    return flat.view(weights.shape)


WRONG = [
    ("roll_out", lambda p: multiplied(p, residual=False, half=False), "residual is missing"),
    ("roll_out", lambda p: multiplied(p, half=False), "sum to one"),
    ("roll_out", lambda p: roll_out(p.flip(0)), "turned round"),
    ("roll_out", lambda p: roll_out(p[-1:]), "last layer alone"),
    ("roll_out", lambda p: p.mean(dim=1), "heads are averaged, layers multiplied"),
    ("mass_inside", lambda w, i: (w * parts(w, i)).sum().item(), "Divide by the sum"),
    ("mass_inside", lambda w, i: ((w * (parts(w, i) > 0)).sum() / w.sum()).item(), "only touches"),
    ("mass_inside", lambda w, i: parts(w, i).mean().item(), "without weights"),
    ("mass_inside", lambda w, i: w * parts(w, i), "one number"),
    (
        "mass_inside",
        lambda w, i: mass_inside(w, i) * (i.shape[0] // w.shape[0]) ** 2,
        "summed pixels",
    ),
    ("top_patches", threshold, "cannot choose among equals"),
    ("top_patches", over_all, "not over the whole batch"),
    ("top_patches", lambda w, n: top_patches(-w, n), "smallest"),
    ("top_patches", lambda w, n: ~top_patches(w, n), "marked the others"),
    ("top_patches", lambda w, n: w.topk(n, dim=1).indices, "do not list them"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def all_at_once(patterns):
    steps = (patterns.mean(dim=1) + torch.eye(patterns.shape[-1])) / 2
    return torch.linalg.multi_dot(list(steps.flip(0))) if len(steps) > 1 else steps[0]


def by_pixels(weights, inside):
    step = inside.shape[0] // weights.shape[0]
    spread = weights.repeat_interleave(step, 0).repeat_interleave(step, 1)
    return (spread[inside].sum() / spread.sum()).item()


def ranked(weights, count):
    return weights.argsort(dim=1, descending=True).argsort(dim=1) < count


@pytest.mark.parametrize(
    ("name", "answer"),
    [("roll_out", all_at_once), ("mass_inside", by_pixels), ("top_patches", ranked)],
)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    assert lab.check(name, answer).right


@pytest.mark.parametrize("reference", [roll_out, mass_inside, top_patches])
def test_references_pass_their_own_check_and_hints_come_in_steps(reference) -> None:
    name = reference.__name__
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")
