"""Logits by way of a matrix that is filled up are those of the plain one."""

import pytest
import torch
import torch.nn.functional as F

from minibeit3 import vocabulary
from minibeit3.vocabulary import ROWS, VocabularyHead, filled_linear


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128])
def test_filled_up_logits_and_gradients_are_those_of_the_plain_layer(rows: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in ((5, 16), (rows, 16), (rows,)))
    given = [t.requires_grad_() for t in (x, weight, bias)]
    plain, filled = F.linear(*given), filled_linear(*given)
    torch.testing.assert_close(filled, plain)
    for mine, other in zip(
        torch.autograd.grad(filled.square().sum(), given),
        torch.autograd.grad(plain.square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_the_product_has_a_multiple_of_64_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b: (seen.append(len(w)), linear(x, w, b))[1])
    filled_linear(torch.ones(2, 4), torch.ones(70, 4), torch.ones(70))
    assert seen == [128] and 128 % ROWS == 0


@pytest.mark.parametrize(
    ("training", "device", "filled"),
    [
        (True, "cuda", True),
        (False, "cuda", False),
        (True, "cpu", False),
    ],
)
def test_only_training_on_cuda_fills_up(
    training: bool, device: str, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(torch.Tensor):
        device = property(lambda _: torch.device(device))  # pyright: ignore

    called = []
    monkeypatch.setattr(vocabulary, "filled_linear", lambda *_: called.append(1))
    head = VocabularyHead(4, 70).train(training)
    head(torch.ones(2, 4).as_subclass(Elsewhere))
    assert bool(called) == filled
