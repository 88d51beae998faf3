"""Exercises of notebook 07: wrong answers are told their mistake, other right ones pass."""

import re

import pytest
import torch

from minibeit3 import lab

NAMES = ["needed", "mean_of_words", "class_ious"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_passes_its_own_check(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")


def choose(forbidden):
    return lambda names, images: [n for n in names if not re.search(forbidden(images), n)]


def other(images):
    return ("L", "text") if images else ("V", "image")


def without_shared(names, images):
    return [n for n in lab.use_reference("needed")(names, images) if "attn" not in n]


def all_attention(names, images):
    kept = lab.use_reference("needed")(names, images)
    return [n for n in names if n in kept or ".attn." in n]


def padding_too(x, real):
    return x.mean(dim=1)


def over_length(x, real):
    return (x * real[..., None]).mean(dim=1)


def empty_is_nan(x, real):
    return (x * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)


def first_word(x, real):
    return x[:, 0]


def all_texts(x, real):
    return x[real].mean(dim=0)


def per_class(measure, drop=True):
    def ious(told, truth, classes):
        seen = truth != 255
        if drop:
            told, truth = told[seen], truth[seen]
        return torch.stack([measure(told == c, truth == c) for c in range(classes)])

    return ious


def iou(told, true):
    return (told & true).sum() / (told | true).sum()


def picture_by_picture(told, truth, classes):
    rows = [per_class(iou)(t, y, classes) for t, y in zip(told, truth, strict=True)]
    return torch.stack(rows).nanmean(dim=0)


def absent_is_zero(told, truth, classes):
    return per_class(iou)(told, truth, classes).nan_to_num(0.0)


WRONG = [
    (
        "needed",
        choose(lambda i: rf"experts\.{other(i)[0]}\.|{other(i)[1]}_embed"),
        "VL is for pairs",
    ),
    ("needed", choose(lambda i: rf"experts\.VL\.|{other(i)[1]}_embed"), "never meet"),
    ("needed", choose(lambda i: rf"experts\.(VL|{other(i)[0]})\."), "the other language"),
    ("needed", all_attention, "attention has experts too"),
    ("needed", without_shared, "needed by everyone"),
    ("needed", lambda names, images: ["V", "L"], "are no parameters"),
    ("needed", lambda names, images: len(names), "a list of names"),
    ("mean_of_words", padding_too, "Padding is part"),
    ("mean_of_words", over_length, "the length with padding"),
    ("mean_of_words", lambda x, real: (x * real[..., None]).sum(dim=1), "That is the sum"),
    ("mean_of_words", empty_is_nan, "padding alone gives NaN"),
    ("mean_of_words", first_word, "not the mean"),
    ("mean_of_words", all_texts, "one vector for each text"),
    ("class_ious", per_class(lambda a, b: (a & b).sum() / b.sum()), "Pixels told wrongly"),
    ("class_ious", per_class(lambda a, b: (a & b).sum() / a.sum()), "Missed pixels"),
    ("class_ious", per_class(lambda a, b: (a & b).sum() / (a.sum() + b.sum())), "twice"),
    ("class_ious", per_class(iou, drop=False), "Leave those pixels out"),
    ("class_ious", picture_by_picture, "each picture first"),
    ("class_ious", absent_is_zero, "NaN, not 0.00"),
    ("class_ious", lambda *given: per_class(iou)(*given).nanmean(), "expected (4,)"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def without_the_mask(names, images):
    pattern = r"experts\.(VL|L)\.|text_embed|mask" if images else r"experts\.VL?\.|image_embed"
    return {name for name in names if not re.search(pattern, name)}


def row_by_row(x, real):
    found = torch.zeros(len(x), x.shape[-1])
    for i, (row, there) in enumerate(zip(x, real, strict=True)):
        if there.any():
            found[i] = row[there].mean(dim=0)
    return found


RIGHT = [
    ("needed", without_the_mask),
    ("mean_of_words", row_by_row),
    ("class_ious", per_class(iou)),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    verdict = lab.check(name, answer)
    assert verdict.right, verdict.message
