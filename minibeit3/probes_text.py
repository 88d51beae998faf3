"""Masked words of texts alone, against word frequencies and a 5-gram model.

Legend: B texts, T tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from minibeit3.masking import SPECIAL_IDS, TEXT_RATIO
from minibeit3.objective import MaskedBatch, MaskedDataModel
from minibeit3.probes_score import Score, score
from minibeit3.probes_words import TEXT_LENGTH, Hidden, check_eval, hide_words
from minibeit3.text_tokenizer import TextTokenizer


@torch.no_grad()
def masked_text(
    model: MaskedDataModel,
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    ratio: float = TEXT_RATIO,
    seed: int = 0,
    batch_size: int = 64,
) -> Score:
    """Accuracy on the hidden pieces of texts without pictures; ValueError in train mode."""
    device = check_eval(model)
    length = min(TEXT_LENGTH, model.backbone.config.max_text_length)
    found, right = hide_words(texts, tokenizer, ratio, seed, length), []
    for rows in torch.arange(len(texts)).split(batch_size):
        text, real, hidden, words = (part[rows] for part in found)
        batch = MaskedBatch(text=text, text_real=real, hidden_words=hidden, words=words)
        guess = model(batch.to(device))[1]
        right.append((guess.logits.argmax(-1) == guess.targets).cpu())
    return score(torch.cat(right), _rows(found))


def text_baselines(
    texts: Sequence[str],
    training: Iterable[str],
    tokenizer: TextTokenizer,
    ratio: float = TEXT_RATIO,
    seed: int = 0,
    order: int = 5,
) -> dict[str, Score]:
    """Counts of `training` texts at the places that `masked_text` hides: "unigram", "ngram".

    The n-gram model knows the order - 1 pieces to the left, as far as none of them is hidden.
    """
    found = hide_words(texts, tokenizer, ratio, seed, TEXT_LENGTH)
    contexts = []
    for row, column in found.hidden.nonzero().tolist():
        left = found.text[row, max(0, column - order + 1) : column].tolist()
        gap = max((i + 1 for i, word in enumerate(left) if word == tokenizer.mask_id), default=0)
        contexts.append(tuple(left[gap:]))
    pieces = ([tokenizer.bos_id, *tokenizer.token_ids(text)] for text in training)
    common, guesses = ngram_guesses(contexts, pieces, tokenizer.vocab_size)
    targets = found.words[found.hidden]
    return {
        "unigram": score(targets == common, _rows(found)),
        "ngram": score(targets == torch.tensor(guesses), _rows(found)),
    }


def ngram_guesses(
    contexts: Sequence[tuple[int, ...]], training: Iterable[Sequence[int]], vocab_size: int
) -> tuple[int, list[int]]:
    """The most frequent piece, and the likeliest next piece of every context.

    Orders are interpolated by Witten and Bell's rule: a context c seen n times with k different
    successors gives P(w | c) = (count(c w) + k P(w | shorter c)) / (n + k). Only the contexts that
    are asked for are counted, so that memory does not grow with the training text.
    """
    after = {c[i:]: Counter[int]() for c in contexts for i in range(len(c))}
    longest = max(map(len, contexts), default=0)
    singles = np.zeros(vocab_size)
    for row in training:
        for end, piece in enumerate(row):
            if piece in SPECIAL_IDS:
                continue
            singles[piece] += 1
            for start in range(max(0, end - longest), end):
                if (found := after.get(tuple(row[start:end]))) is not None:
                    found[piece] += 1
    if not singles.any():
        raise ValueError("the training texts hold no word: pass some")
    singles /= singles.sum()
    guesses = []
    for context in contexts:
        chance = singles.copy()
        for start in reversed(range(len(context))):
            if counts := after[context[start:]]:
                chance *= len(counts)
                chance[list(counts)] += list(counts.values())
                chance /= counts.total() + len(counts)
        guesses.append(int(chance.argmax()))
    return int(singles.argmax()), guesses


def _rows(found: Hidden) -> Tensor:
    return torch.arange(len(found.hidden))[:, None].expand_as(found.hidden)[found.hidden]
