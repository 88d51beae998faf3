"""Both backbones behind one call, and where their parameters are."""

from dataclasses import replace

import torch
from torch import nn

from minibeit3.config import PRESETS, BEiT3Config, Variant
from minibeit3.model import BEiT3
from minibeit3.released import UNREAD_ROWS, ReleasedBEiT3

Backbone = BEiT3 | ReleasedBEiT3


def preset(name: str, variant: Variant = "paper") -> BEiT3Config:
    """The preset `name` in either variant; ValueError lists the names that exist.

    The released text table has as many rows as the paper's, but the first two are never read.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}")
    config = PRESETS[name]
    if variant == "paper":
        return config
    length = config.max_text_length - UNREAD_ROWS
    return replace(config, variant=variant, fusion_layers=0, max_text_length=length)


def build_backbone(config: BEiT3Config, generator: torch.Generator | None = None) -> Backbone:
    """The backbone of `config.variant` with fresh weights.

    generator: CPU generator of the initial values; None = torch's global one. Under
    `torch.device("meta")` even giant takes no memory (and has no values).
    """
    kinds = {"paper": BEiT3, "released": ReleasedBEiT3}
    return kinds[config.variant](config, generator)


def count_parameters(config: BEiT3Config) -> dict[str, int]:
    """Parameters by part, biases counted (paper, Table 2), from the modules themselves.

    vision_experts, language_experts, vl_experts: matrices and biases of the FFNs. attention:
    projections of all layers. embeddings: patches, words, positions, [CLS] and [MASK]. norms:
    every LayerNorm. backbone: the sum so far. heads: both untied linear heads of masked data
    modelling, as in the released pretrained checkpoints. total: backbone and heads.
    """
    with torch.device("meta"):
        backbone = build_backbone(config)
    experts = {"V": "vision_experts", "L": "language_experts", "VL": "vl_experts"}
    counts = dict.fromkeys([*experts.values(), "attention", "embeddings", "norms"], 0)
    for name, module in backbone.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, nn.LayerNorm):
            counts["norms"] += size
        elif ".attn." in name:
            counts["attention"] += size
        elif ".ffn.experts." in name:
            counts[experts[name.split(".ffn.experts.")[1].split(".")[0]]] += size
        else:
            counts["embeddings"] += size
    counts["backbone"] = sum(counts.values())
    counts["heads"] = (config.width + 1) * (config.vocab_size + config.visual_vocab_size)
    counts["total"] = counts["backbone"] + counts["heads"]
    return counts
