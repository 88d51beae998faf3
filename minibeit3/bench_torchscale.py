"""torchscale's BEiT3, Microsoft's own code, as a contestant of `bench`.

`pip install --no-deps torchscale` is enough and wise: what it pins would replace torch and timm.
Of fairscale it needs two wrappers and of timm one function, none of which this work calls; where
these packages are missing, stand-ins that refuse to be called take their places for the import.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibeit3.bench import STEPS, WORDS, Run, forward, inputs, learn, silence
from minibeit3.config import BEiT3Config
from minibeit3.decoding import Score, beam_search, decode
from minibeit3.objective import MaskedBatch
from minibeit3.visibility import caption_rule

SPECIALS = (0, 1, 2)  # <s>, <pad>, </s>
BORROWED = {"fairscale.nn": ("checkpoint_wrapper", "wrap"), "timm.models.layers": ("drop_path",)}


def installed() -> bool:
    """True = torchscale is here."""
    return find_spec("torchscale") is not None


def torchscale(
    work: str,
    config: BEiT3Config,
    b: MaskedBatch,
    dtype: torch.dtype,
    everywhere: bool = False,
) -> Mapping[str, Run]:
    """The same work as `bench.own` in one pass per kind of sample, as its users do it.

    everywhere: True = logits at all places of the training loss, as where nobody picks the hidden.
    """
    device = b.image.device.type if b.image is not None else "cpu"
    model = Masked(config).to(device)
    if work in STEPS:
        return {"": learn(model.train(), lambda: model.loss(b, everywhere), dtype, work)}
    model.eval()
    if work == "caption":
        return captions(model, b, dtype)
    given = inputs(work, b)
    names = {"textual_tokens": given.get("text"), "visual_tokens": given.get("image")}
    return {"": forward(lambda: model.backbone(**names), device, dtype)}


def captions(model: "Masked", b: MaskedBatch, dtype: torch.dtype) -> Mapping[str, Run]:
    """Captions of `WORDS` words, greedy and by three beams, by this package's search."""
    assert b.image is not None
    image = b.image[b.pairs :]
    start = torch.zeros(len(image), 1, dtype=torch.int64, device=image.device)
    silence(model.word_head, (*SPECIALS, model.config.vocab_size - 1))

    def greedy() -> Any:
        return list(decode(scorer(model, image), start, SPECIALS[2], WORDS))

    def beams() -> Any:
        return beam_search(scorer(model, image), start, SPECIALS[2], 3, WORDS + 3, 0.6)

    named = {", greedy": greedy, ", 3 beams": beams}
    return {name: forward(run, image.device.type, dtype) for name, run in named.items()}


def scorer(model: "Masked", image: Tensor) -> Score:
    """Scores of the next word as Microsoft's captioning does it: two tokens per word.

    Every beam encodes its image, and whole caches are put in order, the image's part too.
    """
    c = model.config
    states: dict[int, dict[str, Tensor]] = {i: {} for i in range(c.depth)}

    def score(ids: Tensor, rows: Tensor | None) -> Tensor:
        length, first = ids.shape[1], not states[0]
        newest = torch.stack([ids[:, -1], torch.full_like(ids[:, -1], c.vocab_size - 1)], dim=1)
        kept = c.image_tokens + length - 1
        rule = caption_rule(c.image_tokens, length + 1, ids.device)
        if first:
            pictures = image if rows is None else image[rows]
            given = {"visual_tokens": pictures, "attn_mask": (~rule).float()}
        else:
            for state in states.values():
                for name, value in state.items():
                    state[name] = (value if rows is None else value[rows])[:, :, :kept]
            places = torch.arange(length + 1, length + 3, device=ids.device)[None]
            given = {"positions": places, "attn_mask": (~rule[-2:]).float()}
        found = model.backbone(textual_tokens=newest, incremental_state=states, **given)
        return model.word_head(found["encoder_out"][:, -1])

    return score


class Masked(nn.Module):
    """Its backbone with our heads, at hidden places only."""

    def __init__(self, config: BEiT3Config) -> None:
        super().__init__()
        with stand_ins():
            from torchscale.architecture.config import (  # pyright: ignore[reportMissingImports]
                EncoderConfig,
            )
            from torchscale.model.BEiT3 import BEiT3  # pyright: ignore[reportMissingImports]
        self.config = c = config
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

    def loss(self, b: MaskedBatch, everywhere: bool = False) -> Tensor:
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
        patches = torch.cat([image["encoder_out"][:, 1:], pair[:, 1:length]])
        words = torch.cat([pair[:, length:], text])
        if everywhere:
            guess = self.vision_head(patches)[at], self.word_head(words)[b.hidden_words]
        else:
            guess = self.vision_head(patches[at]), self.word_head(words[b.hidden_words])
        truth = b.codes[at], b.words[b.hidden_words]
        image, text = (F.cross_entropy(g.float(), t) for g, t in zip(guess, truth, strict=True))
        return image + text


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
