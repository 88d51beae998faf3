"""The pruned last block: the same loss and the same gradients as the whole one, for less work."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minibeit3 import build_backbone, capture, pruned
from minibeit3.masking import mask_patches, mask_text
from minibeit3.objective import MaskedBatch, MaskedDataModel, masked_data_loss
from tests.test_backbones import SMALL, VARIANTS, small

EACH = {"mixed": 2, "pairs": 4, "lone": 0}


def model(variant: str) -> MaskedDataModel:
    torch.manual_seed(0)
    config = replace(small(variant).config, drop_path=0.5)
    return MaskedDataModel(build_backbone(config, torch.Generator().manual_seed(0)))


def batch(pairs: int, seed: int = 1) -> MaskedBatch:
    """Four images and four texts of different lengths, `pairs` of them together."""
    g = torch.Generator().manual_seed(seed)
    image, words = torch.randn(4, 3, 32, 32, generator=g), torch.randint(4, 90, (4, 9), generator=g)
    words[:, 0] = 0
    real = torch.arange(9) < torch.randint(3, 10, (4, 1), generator=g)
    ids, hidden = mask_text(words, real, 0.5, 96, 97, g)
    codes = torch.randint(0, 31, (4, 16), generator=g)
    return MaskedBatch(image, mask_patches(4, 4, 0.4, g), codes, ids, real, hidden, words, pairs)


def learn(m: MaskedDataModel, b: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step, stochastic depth included."""
    m.zero_grad()
    loss, _ = masked_data_loss(*m.train()(b, torch.Generator().manual_seed(2)))
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in m.named_parameters() if p.grad is not None}


def both_ways(
    monkeypatch: pytest.MonkeyPatch, m: MaskedDataModel, b: MaskedBatch
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """`learn` with the pruned block and with the whole one."""
    calls: list[Any] = []
    real = pruned.encode_hidden
    monkeypatch.setattr(pruned, "encode_hidden", lambda *call: calls.append(1) or real(*call))
    results = [learn(m, b)]
    assert calls == [1]
    monkeypatch.setattr(pruned, "prunable", lambda backbone: False)
    results.append(learn(m, b))
    assert calls == [1]
    return results


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_whole_block(
    monkeypatch: pytest.MonkeyPatch, variant: str, kind: str
) -> None:
    (loss, grads), (expected, whole) = both_ways(monkeypatch, model(variant), batch(EACH[kind]))
    torch.testing.assert_close(loss, expected)
    assert grads.keys() == whole.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("left_out", ["image", "text", "codes", "words", "masks of pairs"])
def test_incomplete_batches_work_too(
    monkeypatch: pytest.MonkeyPatch, variant: str, left_out: str
) -> None:
    b = batch(2)
    of = {"image": ("image", "hidden_patches", "codes"), "codes": ("codes",), "words": ("words",)}
    of["text"] = ("text", "text_real", "hidden_words", "words")
    if left_out == "masks of pairs":
        assert b.hidden_patches is not None and b.hidden_words is not None
        rows = torch.arange(4)[:, None]
        b = b._replace(
            hidden_patches=b.hidden_patches & (rows < 2), hidden_words=b.hidden_words & (rows >= 2)
        )
    else:
        b = b._replace(**dict.fromkeys(of[left_out]))
        b = b if left_out in ("codes", "words") else b._replace(pairs=0)
    (loss, _), (expected, _) = both_ways(monkeypatch, model(variant), b)
    torch.testing.assert_close(loss, expected)


def test_bfloat16_gives_the_same_loss_to_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (loss, _), (expected, _) = both_ways(monkeypatch, model("paper"), batch(2))
    torch.testing.assert_close(loss, expected, atol=2e-2, rtol=0)


def test_whoever_looks_into_the_last_block_finds_all_tokens() -> None:
    m, b = model("paper").train(), batch(2)
    with capture(m, "blocks.2.ffn") as seen:
        m(b)
    image, text = seen["blocks.2.ffn"]
    assert image is not None and text is not None
    assert image.shape == (4, 17, SMALL.width) and text.shape == (4, 9, SMALL.width)
    assert pruned.prunable(m.backbone)
    assert not pruned.prunable(m.eval().backbone)


def test_visible_tokens_cost_the_last_block_no_expert() -> None:
    m, b = model("paper").train(), batch(2)
    seen = []
    last: Any = m.backbone.blocks[-1]
    # The experts' inner layers: a hook on the block itself would bring the whole one back.
    plain = torch.nn.functional.linear

    def count(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if any(weight is e.fc1.weight for e in last.ffn.experts.values()):
            seen.append(x.shape[0] * x.shape[1])
        return plain(x, weight, bias)

    try:
        torch.nn.functional.linear = count
        m(b, torch.Generator().manual_seed(2))
    finally:
        torch.nn.functional.linear = plain
    assert b.hidden_patches is not None and b.hidden_words is not None
    assert sum(seen) == int(b.hidden_patches.sum() + b.hidden_words.sum())
