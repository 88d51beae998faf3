"""torchscale's BEiT3, Microsoft's own code, as a contestant of `bench`.

`pip install --no-deps torchscale` is enough and wise: what it pins would replace torch and timm.
Of fairscale it needs two wrappers and of timm one function, none of which this work calls; where
these packages are missing, stand-ins that refuse to be called take their places for the import.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.bench import Run, forward, inputs, learn
from minibeit3.config import BEiT3Config
from minibeit3.objective import MaskedBatch

BORROWED = {"fairscale.nn": ("checkpoint_wrapper", "wrap"), "timm.models.layers": ("drop_path",)}


def installed() -> bool:
    """True = torchscale is here."""
    return find_spec("torchscale") is not None


def torchscale(work: str, config: BEiT3Config, b: MaskedBatch, dtype: torch.dtype) -> Run:
    """The same work as `bench.own` in one pass per kind of sample, as its users do it."""
    device = b.image.device.type if b.image is not None else "cpu"
    model = Masked(config).to(device)
    if work == "step":
        return learn(model.train(), lambda: model.loss(b), dtype)
    given = inputs(work, b)
    names = {"textual_tokens": given.get("text"), "visual_tokens": given.get("image")}
    return forward(lambda: model.eval().backbone(**names), device, dtype)


class Masked(nn.Module):
    """Its backbone with our heads, at hidden places only."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        with stand_ins():
            from torchscale.architecture.config import (  # pyright: ignore[reportMissingImports]
                EncoderConfig,
            )
            from torchscale.model.BEiT3 import BEiT3  # pyright: ignore[reportMissingImports]
        c = config
        self.backbone: Any = BEiT3(
            EncoderConfig(
                encoder_embed_dim=c.width,
                encoder_attention_heads=c.heads,
                encoder_ffn_embed_dim=c.ffn_width,
                encoder_layers=c.depth,
                encoder_normalize_before=True,
                multiway=True,
                img_size=c.image_size,
                patch_size=c.patch_size,
                vocab_size=c.vocab_size,
                layernorm_embedding=False,
                normalize_output=True,
                no_output_layer=True,
            )
        )
        self.vision_head = nn.Linear(c.width, c.visual_vocab_size)
        self.word_head = nn.Linear(c.width, c.vocab_size)

    def loss(self, b: MaskedBatch) -> Tensor:
        """Images, pairs and texts, one pass each."""
        assert b.image is not None and b.text is not None and b.hidden_patches is not None
        assert b.hidden_words is not None and b.codes is not None and b.words is not None
        alone, n, length = len(b.image) - b.pairs, b.pairs, b.hidden_patches.shape[1] + 1
        at = b.hidden_patches
        image = self.backbone(visual_tokens=b.image[:alone], vision_masked_position=at[:alone])
        pair = self.backbone(
            visual_tokens=b.image[alone:],
            vision_masked_position=at[alone:],
            textual_tokens=b.text[:n],
        )["encoder_out"]
        text = self.backbone(textual_tokens=b.text[n:])["encoder_out"]
        patches = torch.cat([image["encoder_out"][:, 1:], pair[:, 1:length]])[at]
        words = torch.cat([pair[:, length:], text])[b.hidden_words]
        guess = self.vision_head(patches).float(), self.word_head(words).float()
        return F.cross_entropy(guess[0], b.codes[at]) + F.cross_entropy(
            guess[1], b.words[b.hidden_words]
        )


@contextmanager
def stand_ins() -> Iterator[None]:
    """Modules in place of those that are missing, while torchscale is imported."""
    made = {}
    for path, names in BORROWED.items():
        top = path.split(".")[0]
        if top in sys.modules or find_spec(top) is not None:
            continue
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            made[name] = ModuleType(name)
        for function in names:
            setattr(made[path], function, _refuse)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("install fairscale and timm for what this work does not use")
