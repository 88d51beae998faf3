"""Exercises of notebook 04."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minibeit3.lab.exercises import Exercise, register
from minibeit3.optimiser import learning_rate

MASK = "[mask]"


def hidden_loss(logits: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Mean cross-entropy at the hidden places: (B, T, V), int64 (B, T), bool (B, T), True = hidden.

    Logits at visible places are never used, whatever they are.
    """
    logs = logits[hidden].log_softmax(dim=-1)
    return -logs.gather(1, targets[hidden][:, None]).mean()


def _check_loss(own: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    for seed, (rows, length, words) in enumerate(((3, 5, 7), (4, 6, 11), (2, 9, 5))):
        g = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(rows, length, words, generator=g)
        targets = torch.randint(words, (rows, length), generator=g)
        hidden = torch.rand(rows, length, generator=g) < 0.4
        hidden[0, :3], hidden[1, :] = True, False  # rows that hide unequally many
        hidden[1, 0] = True
        found = own(logits.clone(), targets.clone(), hidden.clone())
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.ndim == 0, f"Return one number, not {tuple(found.shape)}: take the mean."
        every = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        at, every = hidden.flatten(), every.view(rows, length)
        wanted = every.flatten()[at].mean()
        by_row = torch.stack([e[h].mean() for e, h in zip(every, hidden, strict=True)]).mean()
        assert not torch.allclose(found, every.mean()), (
            "That is the mean over all places. A visible word is no question: leave it out."
        )
        assert not torch.allclose(found, (every * hidden).mean()), (
            f"You divided by all {rows * length} places, but only {int(at.sum())} are hidden."
        )
        assert not torch.allclose(found, every.flatten()[at].sum()), (
            "That is the sum. Divide by the number of hidden places."
        )
        assert not torch.allclose(found, by_row) or torch.allclose(by_row, wanted), (
            "You took the mean of each text first. Every hidden place counts the same."
        )
        assert not torch.allclose(found, -wanted), "The sign: a loss is minus the log-probability."
        assert torch.allclose(found, wanted, atol=1e-5), (
            f"Here the loss is {wanted:.4f}, you got {found:.4f}: minus the mean of the "
            "logarithm (to base e) of the probability of the right word."
        )
        broken = logits.masked_fill(~hidden[..., None], math.nan)
        assert own(broken, targets, hidden).isfinite(), (
            "A visible place has a say: with NaN in its logits the loss is NaN, for 0 * NaN is "
            "NaN. Choose the hidden places first, then compute."
        )
        assert torch.isfinite(own(1000 * logits, targets, hidden)), (
            "Large logits overflow: exp(1000) is infinite. Use log_softmax or logsumexp."
        )


def rate_at(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Learning rate of step 0 <= step < steps: up in a line over `warmup`, down in a cosine."""
    return learning_rate(step, steps, warmup, peak, floor)


def _check_rate(own: Callable[[int, int, int, float, float], float]) -> None:
    for steps, warmup, peak, floor in (
        (100, 10, 2e-3, 1e-4),
        (61, 21, 1.0, 0.1),
        (40, 2, 0.5, 0.0),
    ):
        told = f"steps={steps}, warmup={warmup}, peak={peak}, floor={floor}"
        found = [own(step, steps, warmup, peak, floor) for step in range(steps)]
        for value in found:
            assert isinstance(value, float | int), f"Return a number, not {type(value).__name__}."

        def near(step: int, value: float, rates: list[float] = found, peak: float = peak) -> bool:
            return abs(rates[step] - value) <= 1e-6 * peak

        assert near(0, 0), f"{told}: step 0 has the rate 0, you have {found[0]:.3g}."
        assert max(found) <= peak * (1 + 1e-6), f"{told}: {max(found):.3g} is above the peak."
        assert near(warmup - 1, peak), (
            f"{told}: step {warmup - 1}, the last of the warm-up, is at the peak; you have "
            f"{found[warmup - 1]:.3g}."
        )
        assert near(warmup, peak), (
            f"{told}: the cosine begins after the warm-up, at the peak. At step {warmup} you have "
            f"{found[warmup]:.3g}: count its steps from {warmup}, not from 0."
        )
        wanted = [learning_rate(step, steps, warmup, peak, floor) for step in range(steps)]
        assert abs(found[-1] - wanted[-1]) < 0.02 * peak, (
            f"{told}: the last step has {found[-1]:.3g}, not {wanted[-1]:.3g}. Half a turn of the "
            "cosine, pi, leads from the peak to the floor."
        )
        early = (3 * warmup + steps) // 4
        assert near(early, wanted[early]), (
            f"{told}: at step {early} you have {found[early]:.3g}, not {wanted[early]:.3g}: a "
            "cosine falls slowly at first, floor + (peak - floor) * (1 + cos) / 2."
        )
        assert all(near(s, w) for s, w in enumerate(wanted)), f"{told}: some step differs."


def blind_chance(captions: Sequence[str], shown: str) -> list[float]:
    """How often the best guess is right at each "[mask]" of `shown`, given its visible words.

    captions: as many as were heard, so repeated ones count again.
    """
    words = shown.split()
    heard = [c for c in map(str.split, captions) if len(c) == len(words)]
    fits = [c for c in heard if all(a in (b, MASK) for a, b in zip(words, c, strict=True))]
    chances = []
    for place, word in enumerate(words):
        if word == MASK:
            there = [c[place] for c in fits]
            chances.append(max(map(there.count, there)) / len(there))
    return chances


HEARD = (*["a red dog"] * 4, *["a red cat"] * 2, *["a blue cat"] * 5, "one dog", *["one cat"] * 3)


def _check_blind(own: Callable[[Sequence[str], str], list[float]]) -> None:
    for turn in range(3):
        g = torch.Generator().manual_seed(turn)
        order = torch.randperm(len(HEARD), generator=g).tolist()
        heard = [HEARD[i] for i in order] * (1 + turn)
        for shown in (
            "a red [mask]",
            "a [mask] cat",
            "one [mask]",
            "a [mask] [mask]",
            "[mask] dog",
        ):
            found, wanted = own(list(heard), shown), blind_chance(heard, shown)
            assert isinstance(found, list | tuple), f"Return a list, not {type(found).__name__}."
            places = shown.split().count(MASK)
            assert len(found) == places, (
                f"{shown!r} has {places} hidden words, you gave {len(found)} numbers: one each."
            )
            close = all(abs(f - w) < 1e-6 for f, w in zip(found, wanted, strict=True))
            if close:
                continue
            once = blind_chance(sorted(set(heard)), shown)
            assert list(found) != once, (
                f"{shown!r}: you counted each caption once. How often it is heard is the frequency."
            )
            assert max(found) <= 1 and min(found) >= 0, f"{shown!r}: {found} are no shares."
            length = len(shown.split())
            blank = blind_chance(heard, " ".join([MASK] * length))
            deaf = [c for c, w in zip(blank, shown.split(), strict=True) if w == MASK]
            assert list(found) != deaf, (
                f"{shown!r}: you forgot the visible words. They rule captions out."
            )
            raise AssertionError(
                f"Heard were {len(heard)} captions. For {shown!r} the best guess is right in "
                f"{[round(w, 3) for w in wanted]} of the cases, you say "
                f"{[round(float(f), 3) for f in found]}. Keep the captions of the same length "
                "whose visible words agree, then count at each hidden place by itself."
            )


register(
    Exercise(
        name="hidden_loss",
        difficulty=1,
        minutes=6,
        check=_check_loss,
        hints=(
            "logits[hidden] has one row for every hidden place, all texts together.",
            "log_softmax(dim=-1) turns each row into logarithms of probabilities.",
            "logs.gather(1, targets[hidden][:, None]) takes the right word of each row.",
        ),
        reference=hidden_loss,
    )
)
register(
    Exercise(
        name="rate_at",
        difficulty=1,
        minutes=5,
        check=_check_rate,
        hints=(
            "Two cases. While step < warmup: a line that is 0 at step 0.",
            "The line reaches the peak at step warmup - 1, so divide by warmup - 1.",
            "After it: done = (step - warmup) / (steps - warmup), then the cosine of pi * done.",
        ),
        reference=rate_at,
    )
)
register(
    Exercise(
        name="blind_chance",
        difficulty=2,
        minutes=8,
        check=_check_blind,
        hints=(
            "Which captions could it be? Those of the same length that agree where you see a word.",
            "Look at one hidden place: count the words that these captions have there.",
            "Counter(words_there).most_common(1) gives the best guess and how often it is right.",
        ),
        reference=blind_chance,
    )
)
