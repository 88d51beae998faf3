"""How the cost of a work grows with the batch, the sequence, the depth and the width."""

import math
import statistics
from dataclasses import replace
from typing import Any

import torch

from minibeit3.bench import in_turns, own
from minibeit3.bench import made_batch as made
from minibeit3.config import BEiT3Config

FACTORS = (1, 2, 4)


def variants(config: BEiT3Config, batch: int) -> dict[str, list[tuple[int, BEiT3Config, int]]]:
    """By what grows: (its size, config, batch), `FACTORS` times as large.

    sequence: image tokens, by larger images; words grow along in `growth`. width: all widths, with
    heads of one width.
    """
    c = config
    return {
        "batch": [(batch * k, c, batch * k) for k in FACTORS],
        "sequence": [
            (larger.image_tokens, larger, batch)
            for larger in (replace(c, image_size=c.image_size * k) for k in FACTORS[:-1])
        ],
        "depth": [(c.depth * k, replace(c, depth=c.depth * k), batch) for k in FACTORS],
        "width": [
            (
                c.width * k,
                replace(c, width=c.width * k, ffn_width=c.ffn_width * k, heads=c.heads * k),
                batch,
            )
            for k in FACTORS
        ],
    }


def growth(
    config: BEiT3Config,
    work: str,
    batch: int,
    text_length: int,
    device: str,
    dtype: torch.dtype,
    rounds: int,
) -> list[dict[str, Any]]:
    """Median seconds of the work at each size, and the exponent of a power law through them."""
    found = []
    for what, sizes in variants(config, batch).items():
        runs = {}
        for size, changed, samples in sizes:
            words = text_length * (changed.image_size // config.image_size)
            b = made(changed, samples, min(words, config.max_text_length), device)
            runs[str(size)] = own(work, changed, b, device, dtype, False)
        times = in_turns(runs, rounds, device == "cuda")
        seconds = [statistics.median(mine) for mine in times.values()]
        values = [size for size, _, _ in sizes]
        row = {"grows": what, "sizes": values, "seconds": seconds}
        found.append(row | {"exponent": exponent(values, seconds)})
    return found


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """e of the line seconds = c * size^e that fits best in logarithms."""
    x, y = ([math.log(v) for v in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope
