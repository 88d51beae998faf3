"""Greedy choice, sampling and beam search: pure functions of a scorer of next words.

Letters: R rows (captions in the making), B images, t words so far, V vocabulary.
"""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

# score(ids, rows): logits (R, V) of the word after int64 ids (R, t). Row r continues row rows[r]
# of the call before (None: row r does); before the first call the rows are the B images. Rows of
# an image stand together, equally many of each, and continue one of its own.
Score = Callable[[Tensor, Tensor | None], Tensor]
Choose = Callable[[Tensor], Tensor]


def greedy(logits: Tensor) -> Tensor:
    """The likeliest word (R,) of logits (R, V)."""
    return logits.argmax(dim=-1)


def nucleus(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """A word (R,) drawn from the likeliest ones that together reach the probability top_p.

    logits: (R, V), divided by the temperature first. Drawn on the CPU (nucleus sampling,
    arXiv 1904.09751).
    """
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be > 0 and top_p {top_p} in 0 < p <= 1")
    probability = (logits.float().cpu() / temperature).softmax(dim=-1)
    probability, order = probability.sort(dim=-1, descending=True)
    reached = probability.cumsum(dim=-1) - probability  # by the words before
    drawn = torch.multinomial(probability.masked_fill(reached >= top_p, 0), 1, generator=generator)
    return order.gather(1, drawn)[:, 0].to(logits.device)


def decode(score: Score, start: Tensor, eos: int, words: int, choose: Choose = greedy) -> Tensor:
    """Append up to `words` words to start (B, t); eos fills a row once it chose eos."""
    ids, done = start, torch.zeros_like(start[:, 0], dtype=torch.bool)
    for _ in range(words):
        word = choose(score(ids, None)).masked_fill(done, eos)
        ids, done = torch.cat([ids, word[:, None]], dim=1), done | (word == eos)
        if done.all():
            break
    return ids


def beam_search(
    score: Score, start: Tensor, eos: int, beams: int, max_length: int, length_penalty: float
) -> list[Tensor]:
    """The best caption of every row of start (B, 1), each int64 (t,) with <s>, without eos.

    A caption's score is its summed log-probability / length^length_penalty (>= 0), where the
    length counts <s>, the words and eos (released engine). A caption ends by eos, or by force at
    length max_length - 1: as in the released code the last of max_length places stays empty, and
    the word that was to stand in eos's place counts as if it were eos.
    """
    first = torch.arange(len(start), device=start.device)
    rows = repeat(first, "B -> (B beams)", beams=beams)
    ids = start[rows]
    total = start.new_full((len(start), beams), -torch.inf, dtype=torch.float32)
    total[:, 0] = 0  # all beams of an image are the same at first: continue one of them
    best, captions = torch.full_like(total[:, 0], -torch.inf), list(start)
    for length in range(2, max_length):
        log_p = score(ids, rows).float().log_softmax(dim=-1)
        sums = log_p + rearrange(total, "B beams -> (B beams) 1")
        sums, flat = rearrange(sums, "(B beams) V -> B (beams V)", beams=beams).topk(3 * beams)
        parent, word = flat // log_p.shape[1] + first[:, None] * beams, flat % log_p.shape[1]
        ends = (word == eos) | (length + 1 == max_length)
        beaten = (~ends).cumsum(dim=1) >= beams  # as many open captions are likelier
        finished = (sums / length**length_penalty).masked_fill(~ends | beaten, -torch.inf)
        value, which = finished.max(dim=1)
        better = value > best
        best = torch.where(better, value, best)
        for row in better.nonzero()[:, 0].tolist():
            captions[row] = ids[parent[row, which[row]]]
        bound = sums[:, 0] / (max_length - 1) ** length_penalty  # no open caption can beat it
        if (best >= bound).all() or length + 1 == max_length:
            break
        go_on = ends.long().argsort(dim=1, stable=True)[:, :beams]  # open ones, likeliest first
        total = sums.gather(1, go_on)
        word, rows = (rearrange(x.gather(1, go_on), "B beams -> (B beams)") for x in (word, parent))
        ids = torch.cat([ids[rows], word[:, None]], dim=1)
    return captions
