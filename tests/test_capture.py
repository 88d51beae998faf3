"""Capture: the recorded weights are those in use, hooks go away, silence is an error."""

from typing import Any

import pytest
import torch

from minibeit3 import capture
from minibeit3.embed import Streams
from minibeit3.visibility import caption_rule
from tests.test_backbones import inputs, small

VARIANTS = ("paper", "released")


@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_patterns_are_normalised_and_respect_padding_and_rules(variant: str) -> None:
    model, (image, text, real) = small(variant), inputs()
    rule = caption_rule(17, 10)
    with capture(model, "blocks.*.attn:pattern") as seen:
        model(image, text, real, visible=rule)
    assert list(seen) == [f"blocks.{i}.attn:pattern" for i in range(3)]
    for pattern in seen.values():
        assert isinstance(pattern, torch.Tensor) and pattern.shape == (3, 4, 27, 27)
        torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(3, 4, 27))
        assert not pattern[:, :, ~rule].any()
        keys = torch.cat([torch.ones(3, 17, dtype=torch.bool), real], dim=1)
        assert not pattern.permute(0, 3, 1, 2)[~keys].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_of_only_padding_has_a_finite_pattern_by_the_formula_too(variant: str) -> None:
    model, (_, text, real) = small(variant), inputs()
    real[1] = False  # the fused call guards itself, a plain softmax over nothing does not
    with capture(model, "blocks.*.attn:pattern") as seen:
        model(text=text, text_real=real)
    assert all(isinstance(p, torch.Tensor) and p.isfinite().all() for p in seen.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recorded_pattern_explains_the_output_of_the_attention(variant: str) -> None:
    model, (image, text, real) = small(variant), inputs()
    plain = model(image, text, real)
    with capture(model, "blocks.*.attn:pattern", "blocks.1.attn", gradients=True) as seen:
        formula = model(image, text, real)
    torch.testing.assert_close(plain.image, formula.image)
    torch.testing.assert_close(plain.text, formula.text)
    formula.text.sum().backward()
    pattern = seen["blocks.0.attn:pattern"]
    assert isinstance(pattern, torch.Tensor) and pattern.grad is not None and pattern.grad.any()


def test_outputs_are_recorded_as_detached_streams_and_hooks_go_away() -> None:
    model, (image, text, _) = small("paper"), inputs()
    with capture(model, "blocks.2.ffn", "norm") as seen:
        out = model(image, text)
    ffn = seen["blocks.2.ffn"]
    assert isinstance(ffn, Streams) and ffn.image is not None and not ffn.image.requires_grad
    last = seen["norm"]
    assert isinstance(last, torch.Tensor) and torch.equal(
        last, out.text
    )  # the norm runs on both streams, the last is kept
    assert not [m for m in model.modules() if m._forward_hooks]


def test_hooks_go_away_after_an_error_too() -> None:
    model = small("paper")
    with pytest.raises(RuntimeError, match="mine"), capture(model, "blocks.0.ffn"):
        raise RuntimeError("mine")
    assert not [m for m in model.modules() if m._forward_hooks]


@pytest.mark.parametrize("name", ["blocks.9.ffn", "block.*", "blocks.*.ffn:pattern", "norm:grad"])
def test_a_name_that_matches_nothing_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="matches nothing"), capture(small("paper"), name):
        pass


def test_a_module_that_never_ran_is_an_error() -> None:
    model = small("paper")
    with (
        pytest.raises(ValueError, match=r"never ran.*experts\.L"),
        capture(model, "blocks.0.ffn.experts.L"),
    ):
        model(image=inputs()[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_a_compiled_model_is_refused() -> None:
    compiled: Any = torch.compile(small("paper"))
    with pytest.raises(ValueError, match="compiled"), capture(compiled, "blocks.*"):
        pass


def test_a_mixed_batch_has_no_one_pattern() -> None:
    model, (image, text, _) = small("paper"), inputs()
    with (
        pytest.raises(ValueError, match="one attention pattern"),
        capture(model, "blocks.0.attn:pattern"),
    ):
        model(image, text, pairs=2)
