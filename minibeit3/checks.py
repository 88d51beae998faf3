"""Clear words for bad input, kept out of the reading path: value, limit and fix."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minibeit3.config import BEiT3Config


def check_config(config: "BEiT3Config") -> None:
    """ValueError when sizes do not fit together."""
    from minibeit3.config import Variant  # config imports this file

    c = config
    if c.variant not in get_args(Variant):
        raise ValueError(f"variant {c.variant!r} is none of {get_args(Variant)}")
    for field in fields(c):
        least = 0 if field.name == "fusion_layers" else 1
        value = getattr(c, field.name)
        if field.type is int and (not isinstance(value, int) or value < least):
            raise ValueError(f"{field.name} is {value!r}, not a whole number from {least} up")
    if c.width % c.heads:
        raise ValueError(f"width {c.width} does not divide into {c.heads} heads")
    if c.image_size % c.patch_size:
        raise ValueError(f"image_size {c.image_size} is no multiple of patch_size {c.patch_size}")
    most = c.depth if c.variant == "paper" else 0
    if c.fusion_layers > most:
        raise ValueError(f"fusion_layers {c.fusion_layers} is above {most} in variant {c.variant}")
    if not 0 <= c.drop_path < 1:
        raise ValueError(f"drop_path {c.drop_path} is not in 0 <= rate < 1")


def check_fields(values: Mapping[str, object], known: set[str], needed: set[str]) -> None:
    """ValueError that lists unknown and missing names of a config file."""
    if values.keys() - known or needed - values.keys():
        raise ValueError(
            f"unknown config fields {sorted(values.keys() - known)}, "
            f"missing {sorted(needed - values.keys())}; known: {sorted(known)}"
        )


def check_image(config: "BEiT3Config", image: Tensor) -> None:
    """ValueError unless float (B, channels, image_size, image_size)."""
    expected = (config.channels, config.image_size, config.image_size)
    if image.ndim != 4 or tuple(image.shape[1:]) != expected:
        raise ValueError(
            f"image is {tuple(image.shape)}, this model takes (batch, *{expected})"
            ": resize it, or load the model with another image_size"
        )
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}: normalise it to floats first (data.images)")


def check_hidden(hidden: Tensor, batch: int, patches: int) -> None:
    """ValueError unless bool (batch, patches)."""
    if hidden.dtype != torch.bool or tuple(hidden.shape) != (batch, patches):
        raise ValueError(
            f"hidden_patches is {hidden.dtype} {tuple(hidden.shape)}, not bool {(batch, patches)}"
        )


def check_text(config: "BEiT3Config", text: Tensor, start: int) -> None:
    """ValueError unless int64 (B, T > 0) of known ids that end within the position table."""
    if text.ndim != 2 or text.dtype != torch.int64 or text.shape[1] == 0:
        raise ValueError(f"text is {text.dtype} {tuple(text.shape)}, not int64 (batch, length > 0)")
    if start < 0 or start + text.shape[1] > config.max_text_length:
        raise ValueError(
            f"text spans positions {start}..{start + text.shape[1] - 1}, the table has "
            f"{config.max_text_length}: shorten the text"
        )
    if text.numel() and not (torch.compiler.is_compiling() or text.is_meta):
        low, high = int(text.min()), int(text.max())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"text ids {low}..{high} leave the vocabulary 0..{config.vocab_size - 1}"
            )


def check_text_real(text_real: Tensor, text: Tensor | None) -> None:
    """ValueError unless bool (B, T) of the text stream."""
    expected = None if text is None else tuple(text.shape[:2])
    if text_real.dtype != torch.bool or tuple(text_real.shape) != expected:
        raise ValueError(
            f"text_real is {text_real.dtype} {tuple(text_real.shape)}, the text takes bool "
            f"{expected} (True = a real word)"
        )


def check_lengths(image_len: int, text_len: int) -> None:
    """ValueError unless there are tokens to route."""
    if min(image_len, text_len) < 0 or image_len + text_len == 0:
        raise ValueError(f"no tokens to route: image_len {image_len}, text_len {text_len}")


def check_routes(routes: int, depth: int) -> None:
    """ValueError unless there is one route per layer."""
    if routes != depth:
        raise ValueError(f"{routes} routes for {depth} layers")


def check_spans(lengths: list[int], tokens: int, names: list[str], experts: list[str]) -> None:
    """ValueError unless a route's spans tile the stream and their experts exist in the layer."""
    if sum(lengths) != tokens or any(length < 0 for length in lengths):
        raise ValueError(f"the route's spans {lengths} do not tile {tokens} tokens")
    if set(names) - set(experts):
        raise ValueError(f"no expert {sorted(set(names) - set(experts))} here, only {experts}")


def check_pairs(image: Tensor | None, text: Tensor | None, pairs: int | None) -> int:
    """The number of pairs in a batch of streams (None = all belong together), or ValueError."""
    if image is None or text is None:
        if image is None and text is None:
            raise ValueError("neither image nor text: give at least one of them")
        if pairs:
            raise ValueError(f"{pairs} pairs asked for, but there is no image or no text")
        return 0
    images, texts = len(image), len(text)
    if pairs is None and images != texts:
        raise ValueError(f"{images} images and {texts} texts are no pairs: say pairs= if mixed")
    pairs = images if pairs is None else pairs
    if not 0 <= pairs <= min(images, texts):
        raise ValueError(f"{pairs} pairs do not fit {images} images and {texts} texts")
    return pairs
