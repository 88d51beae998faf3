"""Exercises of notebook 03: every wrong answer is told its mistake."""

import pytest
import torch

from minibeit3 import lab
from minibeit3.lab.notebook_03 import dispatch_spans, drop_branch, ffn_touched


def parts(x, spans, dim):
    return zip(spans, x.split([n for _, n in spans], dim=dim), strict=True)


def expensive(x, spans, experts):
    names = [name for name, length in spans for _ in range(length)]
    outputs = {name: expert(x) for name, expert in experts.items()}
    return torch.stack([outputs[name][:, i] for i, name in enumerate(names)], dim=1)


def backwards(x, spans, experts):
    return torch.cat([experts[n](p) for (n, _), p in reversed(list(parts(x, spans, 1)))], dim=1)


def one_expert(config, image, text):
    return (2 * config.width * config.ffn_width + config.ffn_width + config.width) * (image or text)


def without_bias(config, image, text):
    return (
        ffn_touched(config, image, text)
        // one_expert(config, True, True)
        * (2 * config.width * config.ffn_width)
    )


def stored(config, image, text):
    most = config.depth * (image + text) + config.fusion_layers * (image and text)
    return one_expert(config, image, text) * most


def with_vl(config, image, text):
    return one_expert(config, image, text) * (config.depth + config.fusion_layers)


def drawn(shape, rate, generator):
    return torch.rand(*shape, generator=generator) >= rate


WRONG = [
    ("dispatch_spans", lambda x, s, e: e[s[0][0]](x), "All tokens went through V"),
    ("dispatch_spans", expensive, "computed 20 tokens for 10"),
    ("dispatch_spans", backwards, "keep the order"),
    ("dispatch_spans", lambda x, s, e: x + dispatch_spans(x, s, e), "residual sum"),
    ("dispatch_spans", lambda x, s, e: dispatch_spans(x, s, e)[:1], "dim=1"),
    ("ffn_touched", stored, "all"),
    ("ffn_touched", without_bias, "biases are missing"),
    ("ffn_touched", with_vl, "Only pairs"),
    ("ffn_touched", one_expert, "6 experts of"),
    ("drop_branch", lambda x, b, r, g: x + b, "Nothing was dropped"),
    ("drop_branch", lambda x, b, r, g: x + b * drawn(x.shape, r, g) / (1 - r), "in part"),
    ("drop_branch", lambda x, b, r, g: x + b * drawn((len(x), 1, 1), r, g), "factor 1.00"),
    (
        "drop_branch",
        lambda x, b, r, g: x + b * drawn((len(x), 1, 1), 1 - r, g) / (1 - r),
        "share that is dropped",
    ),
    (
        "drop_branch",
        lambda x, b, r, g: (x + b) * drawn((len(x), 1, 1), r, g) / (1 - r),
        "only the branch goes",
    ),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def one_by_one(x, spans, experts):
    out, start = torch.empty_like(x), 0
    for name, length in spans:
        out[:, start : start + length] = experts[name](x[:, start : start + length])
        start += length
    return out


def layer_by_layer(config, image, text):
    total = 0
    for layer in range(config.depth):
        fused = image and text and layer >= config.depth - config.fusion_layers
        experts = 1 if fused else image + text
        total += experts * one_expert(config, True, True)
    return total


def chosen(x, branch, rate, generator):
    dropped = torch.rand(x.shape[0], generator=generator) < rate
    return torch.where(dropped[:, None, None], x, x + branch / (1 - rate))


@pytest.mark.parametrize(
    ("name", "answer"),
    [("dispatch_spans", one_by_one), ("ffn_touched", layer_by_layer), ("drop_branch", chosen)],
)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    assert lab.check(name, answer).right


@pytest.mark.parametrize("reference", [dispatch_spans, ffn_touched, drop_branch])
def test_references_pass_their_own_check_and_hints_come_in_steps(reference) -> None:
    name = reference.__name__
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")
