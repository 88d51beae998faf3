"""Every initial value of both variants, in one function."""

import math

import torch
from torch import Tensor, nn

from minibeit3.embed import Streams

STD = 0.02


def initialise(model: nn.Module, depth: int, generator: torch.Generator | None = None) -> None:
    """BEiT initialisation in place (paper, section 2.3 footnote; BEiT's released code).

    Matrices, embeddings, positions and special tokens: normal with deviation .02 cut at one
    deviation; biases 0; norms 1 and 0. What a block adds to the residual stream grows with depth,
    so in layer l (from 1) the matrices that write to it (`out`, `fc2`) are divided by sqrt(2 l).
    With norms inside the branches (released variant: `inner_norm`) nothing grows, and Magneto's
    gain sqrt(ln(2 depth)) on values, `out`, `fc1` and `fc2` replaces the division.
    Departure: Microsoft's code draws .02-normals over Magneto's gain and loses it (FACTS 1.2).
    Departure: patches start as torch's convolutions do, uniform within 1 / sqrt(values in a patch),
    as in the released BEiT-3 code. From BEiT's normals tiny's patches come out a quarter as strong;
    what that costs is an arm of the study ("faint" in `tools/study_pretraining.py`).
    """
    if next(model.parameters()).is_meta:
        return
    magneto = any("inner_norm" in name for name, _ in model.named_modules())

    def draw(weight: Tensor, gain: float = 1.0) -> None:
        nn.init.trunc_normal_(weight, std=STD, a=-STD, b=STD, generator=generator)
        weight.mul_(gain)

    gain = math.sqrt(math.log(2 * depth))
    with torch.no_grad():
        for name, module in model.named_modules():
            kind = name.rsplit(".", 1)[-1]
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif name.endswith("image_embed.patch") and isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                writes = kind in ("out", "fc2")
                if magneto:
                    draw(module.weight, gain if writes or kind == "fc1" else 1.0)
                    if kind == "qkv":
                        module.weight.chunk(3)[2].mul_(gain)
                else:
                    layer = int(name.split(".")[1]) + 1 if writes else 0
                    draw(module.weight, (2 * layer) ** -0.5 if writes else 1.0)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("cls", "mask", "positions"):
                draw(parameter)


Scales = tuple[Streams | None, Streams | None]


def stochastic_depth(
    rate: float, depth: int, x: Streams, pairs: int, generator: torch.Generator | None = None
) -> list[Scales]:
    """Per-sample factors of both residual branches of every layer: 0, or 1 / keep.

    Layer l of L is dropped with probability rate * l / (L - 1), l from 0; a pair is one sample
    (released code). Drawn on the CPU, so that every device sees the same. Rate 0 gives Nones.
    """
    if rate == 0:
        return [(None, None)] * depth
    rows = [0 if s is None else len(s) for s in x]
    like = next(s for s in x if s is not None)
    keep = 1 - torch.linspace(0, rate, depth)[:, None, None, None, None]
    drawn = torch.rand(depth, 2, sum(rows) - pairs, 1, 1, generator=generator)
    scale = ((drawn < keep) / keep).to(like.device, like.dtype)
    streams = [[Streams(s[: rows[0]], s[len(s) - rows[1] :]) for s in layer] for layer in scale]
    return [(first, second) for first, second in streams]
