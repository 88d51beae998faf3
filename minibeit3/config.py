"""Every size of a BEiT-3 model in one place, and the six presets."""

from dataclasses import dataclass, replace
from typing import Literal

from minibeit3.checks import check_config

Variant = Literal["paper", "released"]


@dataclass(frozen=True, kw_only=True)
class BEiT3Config:
    """Sizes of one model, in the paper's words (section 2.3, Table 2); ValueError if they clash.

    variant: "paper" (shared attention, VL experts on top) or "released" (Microsoft's checkpoints).
    fusion_layers: how many top layers own a vision-language expert; 0 in the released variant.
    image_size, patch_size: pixels, images are square. max_text_length: with specials. drop_path: of
    the last layer, rising from 0. final_norm: after the last block (not in released ImageNet, VQA).
    """

    variant: Variant = "paper"
    depth: int
    width: int
    ffn_width: int
    heads: int
    fusion_layers: int = 0
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    max_text_length: int = 1024
    vocab_size: int = 64010
    visual_vocab_size: int = 8192
    drop_path: float = 0.1
    final_norm: bool = True

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """N, patches of an image."""
        return self.grid**2

    @property
    def image_tokens(self) -> int:
        """I = 1 + N: [CLS], then the patches row by row."""
        return 1 + self.patches


# nano to small: ours, for laptops. base, large: the released checkpoints'. giant: paper, Table 2.
TINY = BEiT3Config(
    depth=6,
    width=128,
    ffn_width=512,
    heads=4,
    fusion_layers=2,
    image_size=64,
    patch_size=8,
    max_text_length=64,
    vocab_size=4000,
    visual_vocab_size=512,
)
BASE = BEiT3Config(depth=12, width=768, ffn_width=3072, heads=12, fusion_layers=2)
PRESETS: dict[str, BEiT3Config] = {
    "nano": replace(TINY, depth=4, image_size=32, visual_vocab_size=256),
    "tiny": TINY,
    "small": replace(
        TINY, depth=8, width=256, ffn_width=1024, heads=8, image_size=128, patch_size=16
    ),
    "base": BASE,
    "large": replace(BASE, depth=24, width=1024, ffn_width=4096, heads=16, fusion_layers=3),
    "giant": replace(
        BASE, depth=40, width=1408, ffn_width=6144, heads=16, fusion_layers=3, patch_size=14
    ),
}
