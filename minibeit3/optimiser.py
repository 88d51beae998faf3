"""Learning rate of every step and parameter, and which parameters decay."""

import math
import re
from typing import Any

from torch import nn


def learning_rate(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Rate of step 0 <= step < steps: a line from 0 to `peak`, then a cosine down to `floor`.

    As the released code: the warm-up's last step is at the peak, its first one learns nothing.
    """
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    turn = math.pi * (step - warmup) / (steps - warmup)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(turn))


def no_weight_decay(model: nn.Module) -> set[str]:
    """Parameters that never decay: vectors (biases, norms, [CLS], [MASK]), scalars, positions."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim < 2 or name.endswith(("positions", "pos_embed", "cls_token"))
    }


def released_no_weight_decay(model: nn.Module) -> set[str]:
    """The same in Microsoft's fine-tuning code, where text positions and [MASK] do decay."""
    decays = ("text_embed.positions", "image_embed.mask")
    return {name for name in no_weight_decay(model) if not name.endswith(decays)}


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor on the learning rate of every parameter: the deeper below the head, the smaller.

    `decay` to the power of the layers above it: 0 for heads and the final norm, 1 for the top
    block, depth + 1 for both embeddings (BEiT; released fine-tuning code).
    """
    names = [name for name, _ in model.named_parameters()]
    found = [re.search(r"(?:^|\.)blocks\.(\d+)\.", name) for name in names]
    depth = max((int(block[1]) + 1 for block in found if block), default=0)

    def above(name: str, block: re.Match[str] | None) -> int:
        if re.search(r"(?:^|\.)(image|text)_embed\.", name):
            return depth + 1
        return depth - int(block[1]) if block else 0

    return {n: decay ** above(n, block) for n, block in zip(names, found, strict=True)}


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    undecayed: set[str] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters for AdamW by (scale, decay); `train` multiplies the rate by "scale".

    undecayed: names without weight decay, None = `no_weight_decay(model)`.
    """
    undecayed = no_weight_decay(model) if undecayed is None else undecayed
    scales = layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = scales[name], 0.0 if name in undecayed else weight_decay
            start = {"params": [], "scale": key[0], "weight_decay": key[1]}
            groups.setdefault(key, start)["params"].append(parameter)
    return list(groups.values())
