"""The lab: start cell, exercises that know right from wrong, and nothing runs from text."""

import pytest
import torch

from minibeit3 import lab
from minibeit3.lab.exercises import exercises, find


def test_the_start_cell_seeds_and_names_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIBEIT3_PROFILE", "ci")
    session = lab.start("00", seed=3)
    drawn = torch.rand(2)
    assert lab.start("00", seed=3).profile == "ci" and torch.equal(drawn, torch.rand(2))
    assert torch.equal(
        torch.rand(2, generator=session.generator()), torch.rand(2, generator=session.generator())
    )
    assert "profile" in session._repr_html_() and "seed 3" in repr(session)


def test_unknown_profiles_and_exercises_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'sums'.*cut_patches"):
        lab.check("sums", None)
    monkeypatch.setenv("MINIBEIT3_PROFILE", "cluster")
    with pytest.raises(ValueError, match=r"cluster.*laptop"):
        lab.start("00")


@pytest.mark.parametrize("name", ["cut_patches", "expert_of", "attend"])
def test_every_reference_passes_its_own_check_and_hints_come_in_steps(name: str) -> None:
    assert lab.check(name, lab.use_reference(name)).right
    first, second = lab.hint(name), lab.hint(name)
    assert first.startswith("Hint 1 of 3") and second.startswith("Hint 2 of 3")
    assert find(name).difficulty in (1, 2, 3) and len(exercises()) >= 3


def test_an_empty_answer_and_a_crash_do_not_stop_the_notebook() -> None:
    assert "replace the ..." in repr(lab.check("attend", ...))
    crash = lab.check("attend", lambda *_: 1 / 0)
    assert not crash.right and "ZeroDivisionError" in crash.message


def test_messages_are_escaped() -> None:
    def hostile(*_: object) -> None:
        raise RuntimeError("<img src=x onerror=alert(1)>")

    assert "<img" not in lab.check("attend", hostile)._repr_html_()


def cut(order: str):
    from einops import rearrange

    left = "C (h p) (w q)"
    return lambda image, size: rearrange(image, f"{left} -> {order}", p=size, q=size)


def masked_after(q, k, v, visible):
    return (((q @ k.T) * q.shape[-1] ** -0.5).softmax(-1) * visible) @ v


def unscaled(q, k, v, visible):
    return (q @ k.T).masked_fill(~visible, -torch.inf).softmax(-1) @ v


def unmasked(q, k, v, visible):
    return ((q @ k.T) * q.shape[-1] ** -0.5).softmax(-1) @ v


def transposed(q, k, v, visible):
    return ((k @ q.T) * q.shape[-1] ** -0.5).masked_fill(~visible, -torch.inf).softmax(-1) @ v


WRONG = [
    ("cut_patches", cut("(w h) (C p q)"), "down the columns"),
    ("cut_patches", cut("(h w) (p q C)"), "channels come first"),
    ("cut_patches", cut("h w (C p q)"), "gave (4, 4, 192)"),
    ("cut_patches", lambda i, s: i.reshape(-1, i.shape[0] * s * s), "plain reshape"),
    ("expert_of", lambda c, i, image, pair: "V" if image else "L", "goes to VL"),
    (
        "expert_of",
        lambda c, i, image, pair: "VL" if i >= c.depth - c.fusion_layers else "VL"[not image],
        "Only pairs",
    ),
    (
        "expert_of",
        lambda c, i, image, pair: (
            "VL" if pair and i > c.depth - c.fusion_layers else "VL"[not image]
        ),
        "count from 0",
    ),
    ("attend", masked_after, "after the softmax"),
    ("attend", unscaled, "square root"),
    ("attend", unmasked, "Invisible keys"),
    ("attend", transposed, "not equal"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def loops(image, size):
    rows, columns = image.shape[1] // size, image.shape[2] // size
    boxes = [(r * size, c * size) for r in range(rows) for c in range(columns)]
    return torch.stack([image[:, y : y + size, x : x + size].reshape(-1) for y, x in boxes])


def fused(q, k, v, visible):
    import torch.nn.functional as F

    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible)[0]


def table_of(config, layer, is_image, is_pair):
    from minibeit3 import routing_table

    row = routing_table(config, int(is_image or is_pair), int(not is_image or is_pair))[layer]
    return row[0] if is_image else row[-1]


@pytest.mark.parametrize(
    ("name", "answer"), [("cut_patches", loops), ("attend", fused), ("expert_of", table_of)]
)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    assert lab.check(name, answer).right
