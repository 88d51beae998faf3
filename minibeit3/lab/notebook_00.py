"""Exercises of notebook 00."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from minibeit3.attention import attention_pattern
from minibeit3.config import BEiT3Config
from minibeit3.lab.exercises import Exercise, register
from minibeit3.routing import routing_table


def cut_patches(image: Tensor, size: int) -> Tensor:
    """Image (C, H, W) to patches (N, C * size * size), row by row."""
    return rearrange(image, "C (h p) (w q) -> (h w) (C p q)", p=size, q=size)


def _check_patches(cut: Callable[[Tensor, int], Tensor]) -> None:
    for seed, (channels, rows, columns, size) in enumerate([(3, 4, 4, 8), (1, 2, 5, 3)]):
        g = torch.Generator().manual_seed(seed)
        image = torch.rand(channels, rows * size, columns * size, generator=g)
        found, wanted = cut(image.clone(), size), cut_patches(image, size)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        shape, right = tuple(found.shape), tuple(wanted.shape)
        assert shape == right, f"A {tuple(image.shape)} image gave {shape}; expected {right}."
        by_column = rearrange(image, "C (h p) (w q) -> (w h) (C p q)", p=size, q=size)
        assert not torch.equal(found, by_column), (
            "The patches run down the columns. The second patch is the one to the right of the "
            "first, not the one below it."
        )
        pixels = rearrange(image, "C (h p) (w q) -> (h w) (p q C)", p=size, q=size)
        assert channels == 1 or not torch.equal(found, pixels), (
            "Within a patch the channels come first: all of red, then green, then blue."
        )
        assert torch.equal(found, wanted), (
            "The shape is right, the pixels are not. A plain reshape mixes rows of different "
            "patches: split H into (h p) and W into (w q) first."
        )


def expert_of(config: BEiT3Config, layer: int, is_image: bool, is_pair: bool) -> str:
    """Letters of the expert that a token meets in `layer` (0 is the first)."""
    if is_pair and layer >= config.depth - config.fusion_layers:
        return "VL"
    return "V" if is_image else "L"


def _check_expert(name: Callable[[BEiT3Config, int, bool, bool], str]) -> None:
    for depth, fusion in ((6, 2), (12, 3), (4, 0), (3, 3)):
        config = BEiT3Config(depth=depth, width=8, ffn_width=8, heads=1, fusion_layers=fusion)
        for image_len, text_len in ((5, 0), (0, 4), (5, 4)):
            is_pair = image_len > 0 and text_len > 0
            for layer, row in enumerate(routing_table(config, image_len, text_len)):
                for is_image, wanted in ((True, row[0]), (False, row[-1])):
                    if (is_image and not image_len) or (not is_image and not text_len):
                        continue
                    found = str(name(config, layer, is_image, is_pair))
                    what = ("image" if is_image else "text") + (" of a pair" if is_pair else "")
                    where = f"layer {layer} of {depth} with {fusion} fusion layers"
                    if found == "VL" and not is_pair:
                        raise AssertionError(
                            f"In {where} a lone {what} went to VL. Only pairs meet the "
                            "vision-language expert."
                        )
                    assert found == wanted, (
                        f"In {where} a token of an {what} goes to {wanted}, not {found}. Layers "
                        f"count from 0, so the fusion layers are {depth - fusion} to {depth - 1}."
                    )


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v with invisible keys left out; (S, K) each, visible (S, S)."""
    return attention_pattern(q, k, visible) @ v


def _check_attend(own: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    for seed, (tokens, width) in enumerate([(5, 8), (9, 16)]):
        g = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(tokens, width, generator=g) for _ in range(3))
        visible = torch.rand(tokens, tokens, generator=g) < 0.6
        visible.fill_diagonal_(True)
        found, wanted = own(q, k, v, visible), attend(q, k, v, visible)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        shape = tuple(found.shape)
        assert shape == tuple(wanted.shape), f"Expected {tuple(wanted.shape)}, got {shape}."
        assert not torch.allclose(found, attend(q, k, v, visible | True), atol=1e-4), (
            "Invisible keys still get weight: set their scores to minus infinity first."
        )
        weights = ((q @ k.T) * width**-0.5).softmax(dim=-1) * visible
        assert not torch.allclose(found, weights @ v, atol=1e-4), (
            "You masked after the softmax, so the rows no longer sum to one: mask the scores."
        )
        unscaled = (q @ k.T).masked_fill(~visible, float("-inf")).softmax(dim=-1) @ v
        assert not torch.allclose(found, unscaled, atol=1e-4), (
            "The scores are too large: divide by the square root of the head width."
        )
        assert torch.allclose(found, wanted, atol=1e-5), (
            "Close to attention, but not equal to it: check along which dimension you sum."
        )


register(
    Exercise(
        name="cut_patches",
        difficulty=1,
        minutes=5,
        check=_check_patches,
        hints=(
            "One patch is `size` rows and `size` columns of all channels.",
            "einops can split H into (h p) and W into (w q) in one call.",
            'rearrange(image, "C (h p) (w q) -> (h w) (C p q)", p=size, q=size)',
        ),
        reference=cut_patches,
    )
)
register(
    Exercise(
        name="expert_of",
        difficulty=2,
        minutes=5,
        check=_check_expert,
        hints=(
            "Who meets VL at all? Look at the picture of the three kinds of input.",
            "The fusion layers are the last `config.fusion_layers` of `config.depth`.",
            'VL if is_pair and layer >= depth - fusion_layers, otherwise "V" or "L".',
        ),
        reference=expert_of,
    )
)
register(
    Exercise(
        name="attend",
        difficulty=2,
        minutes=10,
        check=_check_attend,
        hints=(
            "Three steps: scores of every query with every key, weights, mix of the values.",
            "Scale the scores by K ** -0.5; give invisible keys a score of minus infinity.",
            "((q @ k.T) * K**-0.5).masked_fill(~visible, -inf).softmax(dim=-1) @ v",
        ),
        reference=attend,
    )
)
