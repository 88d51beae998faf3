"""Exercises of notebook 10."""

from collections.abc import Callable

import torch
from torch import Tensor

from minibeit3.lab.exercises import Exercise, register
from minibeit3.visibility import caption_rule

Guess = Callable[[Tensor], Tensor]
Step = tuple[Tensor, Tensor, Tensor]


def who_sees(image_len: int, text_len: int) -> Tensor:
    """The caption rule, bool (I + T, I + T), row = who looks, column = at whom, True = may see."""
    return caption_rule(image_len, text_len)


def _check_sees(own: Callable[[int, int], Tensor]) -> None:
    for image_len, text_len in ((5, 4), (3, 7), (10, 2), (2, 1)):
        size, told = image_len + text_len, f"{image_len} image tokens, {text_len} words"
        found, wanted = own(image_len, text_len), caption_rule(image_len, text_len)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert tuple(found.shape) == (size, size), (
            f"{told}: the rule is {size} x {size}, you return {tuple(found.shape)}."
        )
        assert found.dtype == torch.bool, f"Return bool, True = may see, not {found.dtype}."
        assert not torch.equal(found, ~wanted), "Turned round: True means may see, not hidden."
        assert not torch.equal(found, wanted.T) or torch.equal(wanted, wanted.T), (
            "Transposed: a row is who looks, a column at whom."
        )
        image, text = slice(0, image_len), slice(image_len, size)
        assert found[image, image].all(), (
            f"{told}: image tokens see one another, all of them; yours miss some. There is no "
            "order in a picture."
        )
        assert not found[image, text].any(), (
            f"{told}: an image token sees a word. The picture must not change with the words, or "
            "it could not be computed once, before the first word."
        )
        assert found[text, image].all(), f"{told}: some word does not see the whole image."
        among = found[text, text]
        assert among.diagonal().all(), (
            f"{told}: a word does not see itself. There stands <mask>, with its position."
        )
        assert not among.triu(1).any(), (
            f"{told}: a word sees a later one, which does not exist yet when a caption is written."
        )
        assert among.tril().equal(among) and among.sum() == text_len * (text_len + 1) // 2, (
            f"{told}: some word does not see all words before it."
        )


def beam_step(totals: Tensor, log_p: Tensor, beams: int) -> Step:
    """The `beams` best ways to add one word to any open caption, best first.

    totals: float (R,), summed log-probability of the R open captions. log_p: float (R, V), of the
    next word after each. Returns the new totals, the row that each continues and its word.
    """
    sums = totals[:, None] + log_p
    best, flat = sums.flatten().topk(beams)
    return best, flat // log_p.shape[1], flat % log_p.shape[1]


def _check_step(own: Callable[[Tensor, Tensor, int], Step]) -> None:
    for seed, (rows, words, beams) in enumerate(((3, 7, 3), (2, 11, 4), (4, 5, 2))):
        g = torch.Generator().manual_seed(seed)
        log_p = (2 * torch.randn(rows, words, generator=g)).log_softmax(dim=1)
        totals = -3 * torch.rand(rows, generator=g)
        totals[0], log_p[1, 0] = -0.1, -0.05  # the best word is no part of the best caption
        totals[1] = -6.0
        found = own(totals.clone(), log_p.clone(), beams)
        assert isinstance(found, tuple | list) and len(found) == 3, (
            "Return three tensors: totals, rows, words."
        )
        assert all(isinstance(x, Tensor) and tuple(x.shape) == (beams,) for x in found), (
            f"Each of the three is a tensor of {beams} values."
        )
        best, row, word = found
        wanted, parents, chosen = beam_step(totals, log_p, beams)

        def same(value: Tensor, best: Tensor = best) -> bool:
            return torch.allclose(best.float(), value, atol=1e-5)

        assert not same(log_p.flatten().topk(beams).values), (
            "You forgot what the captions had cost so far: add `totals` to each row."
        )
        probability = (totals[:, None].exp() + log_p.exp()).flatten().topk(beams).values
        assert not same(probability), "Log-probabilities are added: no exp here."
        assert not same((totals[:, None] * log_p).flatten().topk(beams).values), (
            "You multiplied. Probabilities are multiplied, their logarithms added."
        )
        sums = totals[:, None] + log_p
        each = sums.max(dim=1).values.sort(descending=True).values[:beams]
        assert len(each) < beams or same(wanted) or not same(each), (
            "You took one word per row. Two of the best may continue the same caption: compare all "
            f"{rows} x {words} sums."
        )
        assert not same(sums.flatten().topk(beams, largest=False).values), (
            "Those are the worst: the largest sum is the best."
        )
        assert not same(wanted.flip(0)), "The best comes first."
        assert same(wanted), (
            f"{rows} captions, {words} words: the best sums are {rounded(wanted)}, you return "
            f"{rounded(best)}."
        )
        assert not (torch.equal(row, chosen) and torch.equal(word, parents)), (
            "Rows and words are swapped: return totals, then rows, then words."
        )
        assert int(word.max()) < words, (
            f"A word {int(word.max())} of {words}: take the place in the flat list modulo {words}."
        )
        assert torch.equal(row.long(), parents), (
            f"The rows are {parents.tolist()}, you return {row.tolist()}: the place in the flat "
            f"list divided by the {words} words, whole part."
        )
        assert torch.equal(word.long(), chosen), (
            f"The words are {chosen.tolist()}, you return {word.tolist()}."
        )


def rounded(values: Tensor) -> list[float]:
    """Two decimals, to be read."""
    return [round(float(x), 2) for x in values]


def leak_share(guess: Guess, text: Tensor, place: int, mask: int, other: Tensor) -> float:
    """Share of captions whose guess at `place` changes when the words after it are exchanged.

    guess: int64 (B, T) of shown words to int64 (B, T), the likeliest word of every place. text:
    (B, T), the captions. mask: id of <mask>, shown at `place` both times. other: (B, T), the words
    that stand behind `place` the second time.
    """
    hidden = text.clone()
    hidden[:, place] = mask
    misled = torch.cat([hidden[:, : place + 1], other[:, place + 1 :]], dim=1)
    first, second = (guess(shown)[:, place] for shown in (hidden, misled))
    return (first != second).float().mean().item()


def _reader(offset: int, mask: int) -> Guess:
    """Says at each place the word `offset` places on, and a fixed word where <mask> stands."""

    def guess(shown: Tensor) -> Tensor:
        return shown.roll(-offset, dims=1).masked_fill(shown.roll(-offset, dims=1) == mask, 3)

    return guess


def _check_leak(own: Callable[[Guess, Tensor, int, int, Tensor], float]) -> None:
    for seed, (rows, length, place) in enumerate(((20, 7, 3), (13, 9, 5), (16, 6, 2))):
        g = torch.Generator().manual_seed(seed)
        mask, told = 99, f"{rows} captions of {length} words, place {place}"
        text, other = (torch.randint(4, 9, (rows, length), generator=g) for _ in "ab")
        seen: list[Tensor] = []

        def heard(shown: Tensor, seen: list[Tensor] = seen, mask: int = mask) -> Tensor:
            seen.append(shown.clone())
            return _reader(1, mask)(shown)

        before = text.clone()
        found = own(heard, text, place, mask, other.clone())
        assert torch.equal(text, before), (
            "Your function changed the captions that it was given: work on a copy (clone)."
        )
        assert isinstance(found, float | int) or (isinstance(found, Tensor) and found.ndim == 0), (
            f"Return one number, not {type(found).__name__}."
        )
        assert seen, "Ask the model: call guess(shown)."
        assert all((s[:, place] == mask).all() for s in seen), (
            f"{told}: put <mask> at the place both times, or the model reads the answer there."
        )
        assert all(torch.equal(s[:, :place], text[:, :place]) for s in seen), (
            f"{told}: the words before the place stay as they are. A guess may change with them."
        )
        assert any(torch.equal(s[:, place + 1 :], other[:, place + 1 :]) for s in seen) and any(
            torch.equal(s[:, place + 1 :], text[:, place + 1 :]) for s in seen
        ), f"{told}: ask twice, once with the words after the place and once with the others."
        for offset in (0, -1, 1, 2):
            reader = _reader(offset, mask)
            wanted = leak_share(reader, text, place, mask, other)
            share = float(own(reader, text.clone(), place, mask, other.clone()))
            reads = {0: "nothing but its own place", -1: "the word before"}.get(
                offset, f"the word {offset} later"
            )
            assert 0 <= share <= 1, f"{share:g} is no share: divide by the {rows} captions."
            shown = text.clone()
            shown[:, place] = mask
            right = (reader(shown)[:, place] == text[:, place]).float().mean().item()
            assert abs(share - wanted) < 1e-6 or abs(share - right) > 1e-6, (
                "You count right guesses. A leak is a guess that changes, right or wrong."
            )
            assert abs(share - wanted) < 1e-6 or abs(share - (1 - wanted)) > 1e-6, (
                f"A model that reads {reads} gets {share:.2f}: you count what stays the same."
            )
            assert abs(share - wanted) < 1e-6, (
                f"{told}: a model that reads {reads} changes {wanted:.2f} of its guesses there, "
                f"you say {share:.2f}. Compare the two guesses at this place alone."
            )


register(
    Exercise(
        name="who_sees",
        difficulty=1,
        minutes=6,
        check=_check_sees,
        hints=(
            "Start from torch.ones(size, size, dtype=torch.bool).tril(): each sees its past.",
            "That is right for the words already: the image stands before them.",
            "The image has no order: set its own square, the first image_len rows and columns.",
        ),
        reference=who_sees,
    )
)
register(
    Exercise(
        name="beam_step",
        difficulty=2,
        minutes=8,
        check=_check_step,
        hints=(
            "totals[:, None] + log_p has the sum of every caption with every next word.",
            "flatten() puts the rows behind one another; topk(beams) finds the best of all.",
            "A place p of the flat list is row p // words and word p % words.",
        ),
        reference=beam_step,
    )
)
register(
    Exercise(
        name="leak_share",
        difficulty=2,
        minutes=8,
        check=_check_leak,
        hints=(
            "Make two versions of the captions. Both have the mask at the place.",
            "In the second, the columns from place + 1 on come from other.",
            "Compare guess(first)[:, place] with guess(second)[:, place]; the mean of !=.",
        ),
        reference=leak_share,
    )
)
