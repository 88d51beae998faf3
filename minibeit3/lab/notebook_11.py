"""Exercises of notebook 11."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from minibeit3.backbones import count_parameters
from minibeit3.config import PRESETS, BEiT3Config
from minibeit3.info import forward_flops
from minibeit3.lab.exercises import Exercise, register

State = dict[str, Tensor]
TINY = PRESETS["tiny"]


def backbone_size(config: BEiT3Config) -> int:
    """Parameters of the paper's backbone, without heads."""
    c = config
    one = 2 * c.width * c.ffn_width + c.ffn_width + c.width + 2 * c.width  # with its norm
    layer = 4 * c.width**2 + 4 * c.width + 2 * c.width + 2 * one
    patch = (c.channels * c.patch_size**2 + 1) * c.width
    rows = c.vocab_size + c.image_tokens + c.max_text_length + 2  # the two: [CLS] and the mask
    return patch + rows * c.width + c.depth * layer + c.fusion_layers * one + 2 * c.width


def _check_size(own: Callable[[BEiT3Config], int]) -> None:
    for depth, width, inner, fusion in ((6, 16, 64, 2), (5, 24, 40, 1), (3, 8, 32, 0)):
        c = replace(TINY, depth=depth, width=width, ffn_width=inner, fusion_layers=fusion, heads=1)
        found, counts = own(c), count_parameters(c)
        wanted, where = counts["backbone"], f"{depth} layers of width {width}, {fusion} with VL"
        assert isinstance(found, int), f"Return a whole number, not {type(found).__name__}."
        short, norm = wanted - found, 2 * width
        assert found != counts["total"], "You counted the two heads: the backbone ends before them."
        assert short not in (counts["norms"], counts["norms"] - norm), (
            f"For {where} the LayerNorms are missing: a gain and a shift of {width} each, one "
            "before attention, one in every expert, one at the end."
        )
        if fusion:
            vl = counts["vl_experts"] + fusion * norm
            assert short not in (vl, counts["vl_experts"]), (
                f"For {where} you counted V and L. The top {fusion} layers own VL as well."
            )
            every = counts["vl_experts"] // fusion * (depth - fusion)
            assert -short not in (every, every + (depth - fusion) * norm), (
                f"For {where} you gave every layer a VL expert: only the top {fusion} have one."
            )
        assert short != norm, (
            f"Off by {norm}, two vectors: [CLS] and the mask are parameters, and so is the norm "
            "after the last layer."
        )
        assert short != width * c.image_tokens and short != width * c.max_text_length, (
            "One of the two position tables is missing: pictures and texts have their own."
        )
        parts = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:6])
        assert found == wanted, f"For {where} it is {wanted}, you said {found}. By part: {parts}."


def pair_flops(config: BEiT3Config, words: int) -> int:
    """FLOPs of the backbone for one picture with `words` text tokens."""
    c, s = config, config.image_tokens + words
    patches = c.patches * c.channels * c.patch_size**2 * c.width
    layer = s * (4 * c.width**2 + 2 * c.width * c.ffn_width) + 2 * s**2 * c.width
    return 2 * (patches + c.depth * layer)


def _check_flops(own: Callable[[BEiT3Config, int], int]) -> None:
    for depth, width, inner, words in ((6, 16, 64, 12), (2, 24, 40, 5), (3, 8, 16, 40)):
        c = replace(TINY, depth=depth, width=width, ffn_width=inner, fusion_layers=1, heads=1)
        found, wanted = own(c, words), forward_flops(c, "pair", words)
        s = c.image_tokens + words
        where = f"{depth} layers of width {width}, {c.image_tokens} image tokens, {words} words"
        assert isinstance(found, int), f"Return a whole number, not {type(found).__name__}."
        assert 2 * found != wanted, "A multiply-add is two FLOPs: yours is exactly half."
        assert found != wanted + depth * 4 * s * width * inner, (
            f"For {where} every token met two experts. V, L or VL: each token meets one."
        )
        products = depth * 4 * s**2 * width
        assert found != wanted - products, (
            "Attention has two more products beside its four matrices: queries with keys, and "
            f"weights with values, together 2 · 2 · {s}² · {width} in each layer."
        )
        apart = depth * 4 * (c.image_tokens**2 + words**2) * width
        assert found != wanted - products + apart, (
            "You let patches see patches and words see words. In a pair all tokens see all: "
            f"({c.image_tokens} + {words})²."
        )
        patches = 2 * c.patches * c.channels * c.patch_size**2 * width
        assert found != wanted - patches, (
            f"The patches are missing: {c.patches} of them through a matrix "
            f"{c.channels * c.patch_size**2} x {width}. Words cost nothing, they are looked up."
        )
        fewer = own(replace(c, image_size=2 * c.patch_size), words)
        assert found == wanted, (
            f"For {where} it is {wanted}, you said {found} (and {fewer} with 5 image tokens). "
            "Did you count [CLS]? It attends and meets an expert, but is no patch."
        )


def join_qkv(state: State) -> State:
    """Released `{q,k,v}_proj.{A,B}.{weight,bias}` of one layer to our `{V,L}.qkv.{weight,bias}`."""
    return {
        f"{ours}.qkv.{kind}": torch.cat([state[f"{p}_proj.{theirs}.{kind}"] for p in "qkv"])
        for ours, theirs in zip("VL", "AB", strict=True)
        for kind in ("weight", "bias")
    }


def _check_join(own: Callable[[State], State]) -> None:
    for seed, width in enumerate((4, 7)):
        g = torch.Generator().manual_seed(seed)
        shapes = {"weight": (width, width), "bias": (width,)}
        state = {
            f"{p}_proj.{m}.{kind}": torch.randn(shape, generator=g)
            for p in "kvq"  # the order in which the released file lists them
            for m in "AB"
            for kind, shape in shapes.items()
        }
        given = dict(state)
        found, wanted = own(given), join_qkv(state)
        assert isinstance(found, dict), f"Return a dict, not {type(found).__name__}."
        missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        assert not missing and not more, (
            f"Missing: {', '.join(missing) or 'nothing'}. Not asked for: {', '.join(more) or '-'}."
        )
        for name, tensor in found.items():
            shape, right = tuple(tensor.shape), tuple(wanted[name].shape)
            assert shape == right, (
                f"{name} is {shape}, it should be {right}: queries, keys and values lie one below "
                "the other, along the outputs, dim=0."
            )
        v, l_ = found["V.qkv.weight"], found["L.qkv.weight"]
        assert not torch.equal(v, wanted["L.qkv.weight"]), "A is vision (V), B is language (L)."
        listed = torch.cat([state[f"{p}_proj.A.weight"] for p in "kvq"])
        assert not torch.equal(v, listed), (
            "The parts stand in the order of the file: k, v, q. Ours is q, k, v. The shapes cannot "
            "tell, the outputs would."
        )
        right = all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert right and not torch.equal(v, l_), "Some numbers went to the wrong place."
        assert given.keys() == state.keys(), "You changed the state dict that was passed in."


register(
    Exercise(
        name="backbone_size",
        difficulty=2,
        minutes=10,
        check=_check_size,
        hints=(
            "Four sums: patches, tables of rows (words, two position tables, [CLS], mask), layers, "
            "the last norm.",
            "A layer has four square matrices with biases, one norm, and two experts.",
            "An expert has D · F + F and F · D + D, a norm of 2 · D; the top layers own a third.",
        ),
        reference=backbone_size,
    )
)
register(
    Exercise(
        name="pair_flops",
        difficulty=2,
        minutes=8,
        check=_check_flops,
        hints=(
            "A matrix product (a x b)(b x c) costs 2 · a · b · c.",
            "With s tokens a layer has 4 products s x D x D, two s x D x F, two s x s x D.",
            "Add the patches once: N x (C · P²) x D. s = 1 + N + words.",
        ),
        reference=pair_flops,
    )
)
register(
    Exercise(
        name="join_qkv",
        difficulty=1,
        minutes=6,
        check=_check_join,
        hints=(
            "There are four results: V and L, weight and bias.",
            'torch.cat([state[f"{p}_proj.A.weight"] for p in "qkv"]) is one of them.',
            'Loop over zip("VL", "AB") and ("weight", "bias").',
        ),
        reference=join_qkv,
    )
)
