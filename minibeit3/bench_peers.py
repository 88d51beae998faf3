"""timm's and transformers' nearest models as contestants of `bench`, with the same sizes.

Images: timm's BEiT-3 encoder. Texts: BERT. Pairs: ViLT. The last two have no inner norms and no
experts. They are imported where they are installed and the work is theirs; nothing is downloaded.
"""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from minibeit3 import bench_torchscale
from minibeit3.bench import Peer, Run, forward, inputs
from minibeit3.config import BEiT3Config
from minibeit3.objective import MaskedBatch


def installed() -> dict[str, Peer]:
    """The peers that are here, torchscale too."""
    peers: dict[str, Peer] = {}
    if bench_torchscale.installed():
        peers["torchscale"] = bench_torchscale.torchscale
    if find_spec("timm") is not None and find_spec("torchvision") is not None:
        peers["timm BEiT-3"] = timm_image
    if find_spec("transformers") is not None:
        peers["transformers BERT"] = bert_text
        peers["transformers ViLT"] = vilt_pair
    return peers


def timm_image(
    work: str, config: BEiT3Config, b: MaskedBatch, dtype: torch.dtype
) -> Mapping[str, Run]:
    """Image features by timm's vision transformer with BEiT-3's inner norms."""
    if work != "image":
        return {}
    from timm.models.vision_transformer import (  # pyright: ignore[reportMissingImports]
        VisionTransformer,
    )

    c = config
    model = VisionTransformer(
        img_size=c.image_size,
        patch_size=c.patch_size,
        in_chans=c.channels,
        num_classes=0,
        global_pool="",
        embed_dim=c.width,
        depth=c.depth,
        num_heads=c.heads,
        mlp_ratio=c.ffn_width / c.width,
        scale_attn_norm=True,
        scale_mlp_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    return called(model, inputs(work, b)["image"], {}, dtype)


def bert_text(
    work: str, config: BEiT3Config, b: MaskedBatch, dtype: torch.dtype
) -> Mapping[str, Run]:
    """Text features by BERT."""
    if work != "text":
        return {}
    from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]

    sizes = BertConfig(**shared(config), max_position_embeddings=config.max_text_length)
    model = BertModel(sizes, add_pooling_layer=False)
    return called(model, inputs(work, b)["text"], {}, dtype)


def vilt_pair(
    work: str, config: BEiT3Config, b: MaskedBatch, dtype: torch.dtype
) -> Mapping[str, Run]:
    """Features of pairs by ViLT."""
    if work != "pair":
        return {}
    from transformers import ViltConfig, ViltModel  # pyright: ignore[reportMissingImports]

    c, given = config, inputs(work, b)
    sizes = ViltConfig(
        **shared(c),
        max_position_embeddings=c.max_text_length,
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_channels=c.channels,
    )
    model = ViltModel(sizes, add_pooling_layer=False)
    return called(model, given["text"], {"pixel_values": given["image"]}, dtype)


def shared(config: BEiT3Config) -> dict[str, Any]:
    """Sizes by the names that transformers gives them."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "vocab_size": config.vocab_size,
    }


def called(
    model: nn.Module, first: Tensor, more: dict[str, Tensor], dtype: torch.dtype
) -> Mapping[str, Run]:
    """The one run of a model."""
    model = model.to(first.device).eval()
    return {"": forward(lambda: model(first, **more), first.device.type, dtype)}
