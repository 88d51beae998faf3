"""What a configuration costs: parameters, FLOPs by mode, memory of training.

Letters: I image tokens, T text tokens, S tokens that attend together, D width, F FFN width.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from minibeit3.checkpoint import empty_model
from minibeit3.config import BEiT3Config

Mode = Literal["image", "text", "pair"]


class Tokens(NamedTuple):
    """I and T of one sample."""

    image: int
    text: int


def tokens(config: BEiT3Config, mode: Mode, text_length: int) -> Tokens:
    """Tokens of one sample; ValueError for an unknown mode or a text the model cannot place."""
    if mode not in ("image", "text", "pair"):
        raise ValueError(f"mode {mode!r} is none of image, text, pair")
    if not 1 <= text_length <= config.max_text_length:
        raise ValueError(f"text_length {text_length} is not in 1..{config.max_text_length}")
    image = 0 if mode == "text" else config.image_tokens
    return Tokens(image, 0 if mode == "image" else text_length)


def task_parameters(task: str, config: BEiT3Config, settings: Mapping[str, Any]) -> int:
    """Parameters of a whole model, head included; takes no memory. See checkpoint.TASKS."""
    return sum(p.numel() for p in empty_model(task, config, settings).parameters())


def forward_flops(config: BEiT3Config, mode: Mode, text_length: int = 64) -> int:
    """Of the backbone for one sample: 2 per multiply-add of every matrix product, the rest is nil.

    Each token meets one expert, so the number of experts does not matter.
    """
    c, (image, text) = config, tokens(config, mode, text_length)
    s = image + text
    patches = 2 * c.patches * c.width * c.channels * c.patch_size**2 if image else 0
    attention = 2 * 4 * s * c.width**2 + 2 * 2 * s**2 * c.width  # four projections, two products
    return patches + c.depth * (attention + 2 * 2 * s * c.width * c.ffn_width)


def training_flops(config: BEiT3Config, mode: Mode, text_length: int = 64) -> int:
    """Estimate: the backward pass costs twice the forward pass."""
    return 3 * forward_flops(config, mode, text_length)


def training_memory(
    config: BEiT3Config,
    parameters: int,
    mode: Mode = "pair",
    text_length: int = 64,
    batch: int = 1,
) -> dict[str, int]:
    """Estimated bytes of one float32 training step with AdamW.

    weights, gradients, optimiser (two moments) and activations, which is what autograd keeps
    between forward and backward, and their sum `total`. Without recomputation, allocator waste
    and the framework itself; bfloat16 activations take about half.
    """
    c, both = config, tokens(config, mode, text_length)
    s = sum(both)
    sub_ln = c.variant == "released"
    # Norm in, norm out, qkv, attention out; norm in, norm out, fc1 out, GELU out. The inner norms
    # of the released variant keep their outputs too; without them a pair's is copied when split.
    per_layer = 8 * c.width + 2 * c.ffn_width
    per_layer += (c.width + c.ffn_width) if sub_ln else c.width * (mode == "pair")
    statistics = c.heads + 2 * (4 if sub_ln else 2)
    kept = s * (c.depth * (per_layer + statistics) + 2 * c.width)
    memory = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimiser": 8 * parameters,
        "activations": 4 * batch * kept,
    }
    return {**memory, "total": sum(memory.values())}
