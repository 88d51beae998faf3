"""Exercises of notebook 01 know right from wrong."""

import math

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import lab

NAMES = ["nearest_codes", "perplexity", "straight_through"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def cosine(vectors, codebook):
    return F.normalize(vectors, dim=-1) @ F.normalize(codebook, dim=-1).T


def shares(counts):
    return counts[counts > 0] / counts.sum()


WRONG = [
    ("nearest_codes", lambda v, e: (v @ e.T).argmax(-1), "Long codes"),
    ("nearest_codes", lambda v, e: torch.cdist(v, e).argmin(-1), "Long codes"),
    ("nearest_codes", lambda v, e: cosine(v, e).argmin(-1), "farthest"),
    ("nearest_codes", lambda v, e: cosine(v, e).argmax(0), "one code for every vector"),
    ("perplexity", lambda n: (-(n / n.sum() * (n / n.sum()).log()).sum()).exp(), "nan"),
    ("perplexity", lambda n: -(shares(n) * shares(n).log()).sum(), "its exponential"),
    ("perplexity", lambda n: (-(shares(n) * shares(n).log2()).sum()).exp(), "Base 2"),
    ("perplexity", lambda n: (n > 0).sum(), "how evenly"),
    ("straight_through", lambda v, e: v + e - v, "goes to the code"),
    ("straight_through", lambda v, e: v, "not the code"),
    ("straight_through", lambda v, e: e.detach(), "Nothing has a gradient"),
    ("straight_through", lambda v, e: 2 * v + (e - 2 * v).detach(), "pass unchanged"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def by_loops(vectors, codebook):
    best = [F.cosine_similarity(vector[None], codebook).argmax() for vector in vectors]
    return torch.stack(best)


def in_bits(counts):
    share = [count / sum(counts.tolist()) for count in counts.tolist() if count]
    return 2 ** sum(-s * math.log2(s) for s in share)


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vector, code):
        return code.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0], None


@pytest.mark.parametrize(
    ("name", "answer"), list(zip(NAMES, [by_loops, in_bits, Through.apply], strict=True))
)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    assert lab.check(name, answer).right
