"""Exercises of notebook 11: wrong answers are told their mistake, other right ones are accepted."""

from dataclasses import replace

import pytest
import torch

from minibeit3 import build_backbone, count_parameters, lab
from minibeit3.info import forward_flops
from minibeit3.lab.notebook_11 import backbone_size, join_qkv, pair_flops


def counted(*parts):
    return lambda c: sum(count_parameters(c)[part] for part in parts)


PARTS = ("vision_experts", "language_experts", "vl_experts", "attention", "embeddings", "norms")


def two_experts(c, words):
    return pair_flops(c, words) + c.depth * 4 * (c.image_tokens + words) * c.width * c.ffn_width


def no_products(c, words):
    return pair_flops(c, words) - c.depth * 4 * (c.image_tokens + words) ** 2 * c.width


def apart(c, words):
    products = c.depth * 4 * (c.image_tokens**2 + words**2) * c.width
    return no_products(c, words) + products


def no_cls(c, words):
    return pair_flops(c, words - 1)


def joined(order, modalities, dim=0):
    return lambda state: (
        {
            f"{ours}.qkv.{kind}": torch.cat(
                [state[f"{p}_proj.{theirs}.{kind}"] for p in order], dim
            )
            for ours, theirs in zip("VL", modalities, strict=True)
            for kind in (("weight", "bias") if dim == 0 else ("weight",))
        }
        | ({} if dim == 0 else {k: v for k, v in join_qkv(state).items() if k.endswith("bias")})
    )


def emptied(state):
    found = join_qkv(state)
    state.clear()
    return found


WRONG = [
    ("backbone_size", counted("total"), "heads"),
    ("backbone_size", counted(*PARTS[:-1]), "LayerNorms are missing"),
    ("backbone_size", counted(*PARTS[:2], *PARTS[3:]), "own VL as well"),
    ("backbone_size", lambda c: backbone_size(replace(c, fusion_layers=c.depth)), "every layer"),
    ("backbone_size", lambda c: backbone_size(c) - 2 * c.width, "[CLS]"),
    ("backbone_size", lambda c: backbone_size(c) - c.width * c.image_tokens, "position tables"),
    ("backbone_size", lambda c: backbone_size(c) + 1, "By part"),
    ("pair_flops", lambda c, words: pair_flops(c, words) // 2, "exactly half"),
    ("pair_flops", two_experts, "meets one"),
    ("pair_flops", no_products, "two more products"),
    ("pair_flops", apart, "all tokens see all"),
    ("pair_flops", no_cls, "[CLS]"),
    ("pair_flops", lambda c, words: 0.5, "whole number"),
    ("join_qkv", joined("kvq", "AB"), "order of the file"),
    ("join_qkv", joined("qkv", "BA"), "A is vision"),
    ("join_qkv", joined("qkv", "AB", dim=1), "dim=0"),
    ("join_qkv", lambda s: {k: v for k, v in join_qkv(s).items() if "bias" not in k}, "L.qkv.bias"),
    ("join_qkv", lambda s: s | join_qkv(s), "Not asked for: k_proj.A.bias"),
    ("join_qkv", emptied, "passed in"),
]


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_their_mistake(name: str, answer, message: str) -> None:
    verdict = lab.check(name, answer)
    assert not verdict.right and message in verdict.message, verdict.message


def built(config):
    with torch.device("meta"):
        return sum(p.numel() for p in build_backbone(config).parameters())


def by_name(state):
    found = {}
    for name in sorted(state, key=lambda name: "qkv".index(name[0])):
        _, modality, kind = name.split(".")
        key = f"{'VL'['AB'.index(modality)]}.qkv.{kind}"
        found[key] = torch.cat([found[key], state[name]]) if key in found else state[name]
    return found


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("backbone_size", built),
        ("pair_flops", lambda c, words: forward_flops(c, "pair", words)),
        ("join_qkv", by_name),
    ],
)
def test_right_answers_written_differently_are_accepted(name: str, answer) -> None:
    assert lab.check(name, answer).right


@pytest.mark.parametrize("reference", [backbone_size, pair_flops, join_qkv])
def test_references_pass_their_own_check_and_hints_come_in_steps(reference) -> None:
    name = reference.__name__
    assert lab.check(name, lab.use_reference(name)).right
    assert lab.hint(name).startswith("Hint 1 of 3")
