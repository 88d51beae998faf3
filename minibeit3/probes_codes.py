"""Masked visual codes of pictures: with their text, with a wrong one, without, and by rule.

Legend: B samples, N patches.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minibeit3.batches import generator_of
from minibeit3.data.sample import Sample
from minibeit3.masking import IMAGE_RATIO, mask_patches
from minibeit3.objective import MaskedBatch, MaskedDataModel
from minibeit3.probes_score import Score, derangement, one_of, score
from minibeit3.probes_words import TEXT_LENGTH, check_eval, one_text, pictures
from minibeit3.text_tokenizer import TextTokenizer

Codes = Callable[[Tensor], Tensor]  # VQKD.tokens: float (B, 3, s, s) in [0, 1] to int64 (B, N)
TEXTS = ("right", "shuffled", "none")


def codes_of(samples: Sequence[Sample], codes: Codes, size: int, batch_size: int = 64) -> Tensor:
    """Visual codes of whole pictures, int64 (B, N)."""
    with torch.no_grad():
        parts = pictures(samples, size).split(batch_size)
        return torch.cat([codes(part / 2 + 0.5).cpu() for part in parts])


@torch.no_grad()
def masked_codes(
    model: MaskedDataModel,
    samples: Sequence[Sample],
    tokenizer: TextTokenizer,
    codes: Codes,
    ratio: float = IMAGE_RATIO,
    text: str = "right",
    seed: int = 0,
    batch_size: int = 64,
) -> Score:
    """Accuracy on the codes of patches that are hidden block-wise.

    text: "right" = one whole text of the sample, no word hidden; "shuffled" = another sample's;
    "none" = the picture goes through the vision expert alone. The hidden patches do not depend on
    it. Raises ValueError for another `text`, a model in train mode, samples without picture.
    """
    one_of("text", text, TEXTS)
    device, config = check_eval(model), model.backbone.config
    image = pictures(samples, config.image_size)
    targets = codes_of(samples, codes, config.image_size, batch_size)
    hidden = mask_patches(len(samples), config.grid, ratio, generator_of(seed, 3))
    length = min(TEXT_LENGTH, config.max_text_length)
    words, real = tokenizer.batch(one_text(samples, seed), length)
    if text == "shuffled":
        other = derangement(len(words), generator_of(seed, 2))
        words, real = words[other], real[other]
    right = []
    for rows in torch.arange(len(samples)).split(batch_size):
        batch = MaskedBatch(image[rows], hidden[rows], targets[rows])
        if text != "none":
            batch = batch._replace(text=words[rows], text_real=real[rows], pairs=len(rows))
        guess = model(batch.to(device))[0]
        right.append((guess.logits.argmax(-1) == guess.targets).cpu())
    return score(torch.cat(right), _rows(hidden))


def code_baselines(
    samples: Sequence[Sample],
    training: Sequence[Sample],
    codes: Codes,
    size: int,
    ratio: float = IMAGE_RATIO,
    seed: int = 0,
) -> dict[str, Score]:
    """Rules without a model at the places that `masked_codes` hides.

    "nearest_visible" copies; "global_mode" is the most frequent code of the `training` pictures.
    """
    targets, known = (codes_of(part, codes, size) for part in (samples, training))
    grid = round(targets.shape[1] ** 0.5)
    hidden = mask_patches(len(samples), grid, ratio, generator_of(seed, 3))
    copied = nearest_visible(targets, hidden, grid)
    rules = {"nearest_visible": copied, "global_mode": known.flatten().mode().values}
    return {name: score((guess == targets)[hidden], _rows(hidden)) for name, guess in rules.items()}


def nearest_visible(codes: Tensor, hidden: Tensor, grid: int) -> Tensor:
    """Every hidden code int64 (B, N) replaced by that of the nearest visible patch.

    hidden: bool (B, N), True = hidden. Of equally near ones the first in reading order counts.
    Raises ValueError for a picture that is all hidden.
    """
    if hidden.all(1).any():
        raise ValueError("a picture has no visible patch to copy: lower the ratio")
    place = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
    away = (place[:, None] - place).square().sum(-1).double()  # (N, N)
    away = away.expand(len(codes), -1, -1).masked_fill(hidden[:, None], torch.inf)
    return codes.gather(1, away.argmin(-1))


def _rows(hidden: Tensor) -> Tensor:
    return torch.arange(len(hidden))[:, None].expand_as(hidden)[hidden]
