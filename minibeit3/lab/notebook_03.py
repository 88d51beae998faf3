"""Exercises of notebook 03."""

from collections.abc import Callable

import torch
from torch import Tensor

from minibeit3.backbones import count_parameters
from minibeit3.config import BEiT3Config
from minibeit3.lab.exercises import Exercise, register

Experts = dict[str, Callable[[Tensor], Tensor]]
NamedSpans = list[tuple[str, int]]


def dispatch_spans(x: Tensor, spans: NamedSpans, experts: Experts) -> Tensor:
    """x (B, tokens, D) cut into spans (expert, length), each through its expert, joined again."""
    parts = x.split([length for _, length in spans], dim=1)
    return torch.cat([experts[n](p) for (n, _), p in zip(spans, parts, strict=True)], dim=1)


def _check_dispatch(own: Callable[[Tensor, NamedSpans, Experts], Tensor]) -> None:
    for seed, lengths in enumerate([(3, 2), (4, 1, 2), (5,)]):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(2, sum(lengths), 8, generator=g)
        met: list[int] = []

        def count(y: Tensor, gain: float, met: list[int] = met) -> Tensor:
            assert y.ndim == 3, f"An expert got {tuple(y.shape)}: give it (B, tokens, D)."
            met.append(y.shape[0] * y.shape[1])
            return y * gain

        experts: Experts = {"V": lambda y: count(y, 2.0), "L": lambda y: count(y, -3.0)}
        spans = [("VL"[i % 2], length) for i, length in enumerate(lengths)]
        found = own(x.clone(), spans, experts)
        computed, wanted = sum(met), dispatch_spans(x, spans, experts)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.shape == wanted.shape, (
            f"{tuple(x.shape)} went in and {tuple(found.shape)} came out. The spans lie along "
            "dim=1, the tokens; dim=0 is the batch."
        )
        assert not torch.allclose(found, x + wanted), (
            "You added the input. The residual sum belongs to the block, not to the dispatch."
        )
        if len(spans) > 1:
            first = experts[spans[0][0]](x)
            assert not torch.allclose(found, first), (
                f"All tokens went through {spans[0][0]}. Each span names its own expert."
            )
        assert torch.allclose(found, wanted), (
            f"For the spans {spans} some token met the wrong expert, or moved: keep the order."
        )
        assert computed == x.shape[0] * x.shape[1], (
            f"The result is right, but the experts computed {computed} tokens for "
            f"{x.shape[0] * x.shape[1]}. Cut first, so that each token costs one expert."
        )


def ffn_touched(config: BEiT3Config, image: bool, text: bool) -> int:
    """FFN matrices and biases that an input with image and/or text meets (paper variant)."""
    width, inner = config.width, config.ffn_width
    one = 2 * width * inner + inner + width
    if image and text:
        return one * (2 * (config.depth - config.fusion_layers) + config.fusion_layers)
    return one * config.depth * (image or text)


def _check_touched(own: Callable[[BEiT3Config, bool, bool], int]) -> None:
    for depth, width, inner, fusion in ((6, 8, 32, 2), (5, 12, 20, 1), (4, 8, 16, 4), (3, 4, 8, 0)):
        c = BEiT3Config(depth=depth, width=width, ffn_width=inner, heads=1, fusion_layers=fusion)
        one = 2 * width * inner + inner + width
        for image, text in ((True, False), (False, True), (True, True)):
            found, wanted = own(c, image, text), ffn_touched(c, image, text)
            kind = "a pair" if image and text else "an image" if image else "a text"
            where = f"{kind}, {depth} layers, {fusion} of them with VL"
            assert isinstance(found, int), f"Return a whole number, not {type(found).__name__}."
            counts = count_parameters(c)
            stored = sum(counts[k] for k in ("vision_experts", "language_experts", "vl_experts"))
            assert found == wanted or not (image and text and found == stored), (
                f"For {where} you counted all {stored} that are stored. In the fusion layers a "
                "pair meets VL in place of V and L."
            )
            assert found == wanted or found != wanted // one * 2 * width * inner, (
                f"For {where} the biases are missing: {inner} and {width} for each expert."
            )
            assert found == wanted or image == text or found != wanted + fusion * one, (
                f"For {where} you counted VL. Only pairs meet it."
            )
            assert found == wanted, (
                f"For {where} it is {wanted}, {wanted // one} experts of {one}; you said {found}."
            )


def drop_branch(x: Tensor, branch: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """x + branch, where the branch of each sample (B, tokens, D) is dropped with `rate`."""
    keep = 1 - rate
    kept = torch.rand(len(x), 1, 1, generator=generator) < keep
    return x + branch * kept / keep


def _check_drop(own: Callable[[Tensor, Tensor, float, torch.Generator], Tensor]) -> None:
    for seed, rate in enumerate((0.3, 0.1, 0.6)):
        g = torch.Generator().manual_seed(seed)
        x, branch = (torch.randn(4000, 2, 3, generator=g) for _ in range(2))
        found = own(x.clone(), branch.clone(), rate, g)
        assert isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}."
        assert found.shape == x.shape, f"Expected {tuple(x.shape)}, got {tuple(found.shape)}."
        gone = (found == 0).all(dim=(1, 2)).any()
        assert not gone, "A sample became zero: only the branch goes, never x itself."
        factor = (found - x) / branch
        steady = branch.abs() > 0.05  # where the division is exact enough
        dropped = (factor.abs() < 1e-2) & steady
        share = dropped.sum() / steady.sum()
        assert not torch.allclose(found, x + branch), (
            f"Nothing was dropped at rate {rate}: draw a random number for every sample."
        )
        odd = (dropped.any(dim=(1, 2)) & (steady & ~dropped).any(dim=(1, 2))).float().mean()
        assert odd == 0, (
            "A sample lost its branch in part. Draw one number per sample, shape (B, 1, 1): "
            "stochastic depth skips a layer, dropout skips numbers."
        )
        assert abs(share - rate) < 0.05, (
            f"At rate {rate} {100 * share:.0f}% of the samples lost the branch: `rate` is the "
            "share that is dropped."
        )
        kept = factor[steady & ~dropped].mean()
        assert abs(kept - 1 / (1 - rate)) < 0.05, (
            f"A kept branch came with factor {kept:.2f}. Divide it by the share that is kept, "
            f"{1 - rate:.1f}, so that the mean over many draws is x + branch."
        )
    x = torch.ones(3, 1, 1)
    still = own(x, x, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(still, x + x), "At rate 0 the result is exactly x + branch."


register(
    Exercise(
        name="dispatch_spans",
        difficulty=1,
        minutes=5,
        check=_check_dispatch,
        hints=(
            "Cut along the tokens, send each part to its expert, join in the same order.",
            "x.split([3, 2], dim=1) gives two parts with 3 and 2 tokens.",
            "torch.cat([experts[name](part) for each span and its part], dim=1)",
        ),
        reference=dispatch_spans,
    )
)
register(
    Exercise(
        name="ffn_touched",
        difficulty=2,
        minutes=8,
        check=_check_touched,
        hints=(
            "First the size of one expert: two matrices and two biases.",
            "A lone image meets one expert in each layer. How many does a pair meet?",
            "A pair: 2 in each of depth - fusion_layers layers, then 1 in each fusion layer.",
        ),
        reference=ffn_touched,
    )
)
register(
    Exercise(
        name="drop_branch",
        difficulty=2,
        minutes=8,
        check=_check_drop,
        hints=(
            "One random number per sample, of shape (B, 1, 1), decides about its whole branch.",
            "torch.rand(...) < keep is True with probability keep = 1 - rate.",
            "x + branch * kept / keep",
        ),
        reference=drop_branch,
    )
)
