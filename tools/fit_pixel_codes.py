"""Fit the plain visual tokenizer of `nano` to scenes and emoji, data_samples/checkpoints/pixels.

    python tools/fit_pixel_codes.py data_samples/checkpoints/pixels

K-means over the patches of training pictures: seconds on one core, and always the same codes.
"""

import sys
from pathlib import Path

import torch

from minibeit3.backbones import preset
from minibeit3.batches import generator_of
from minibeit3.data.images import to_model
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.pixel_codes import PixelCodes
from minibeit3.pretrain import KnownEmoji

SCENES, EMOJI = 4000, 1000


def fitted(size: str = "nano") -> PixelCodes:
    """Pixel codes for a preset's patches and number of codes."""
    config = preset(size)
    scenes = SceneCaptions("train", SCENES, config.image_size)
    emoji = KnownEmoji(config.image_size)
    samples = [scenes[i] for i in range(SCENES)]
    samples += [emoji[i * len(emoji) // EMOJI] for i in range(EMOJI)]
    images = [sample.image for sample in samples if sample.image is not None]
    codes = PixelCodes(config.image_size, config.patch_size, config.visual_vocab_size)
    pictures = to_model(torch.stack(images), config.image_size) / 2 + 0.5
    return codes.fit(pictures, generator_of(0))


if __name__ == "__main__":
    fitted().save_pretrained(Path(sys.argv[1]))
