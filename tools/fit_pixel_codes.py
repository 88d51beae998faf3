"""Fit the plain visual tokenizer of `nano` to scenes, data_samples/checkpoints/pixels.

    python tools/fit_pixel_codes.py data_samples/checkpoints/pixels

K-means over the patches of training scenes: seconds on one core, and always the same codes.
"""

import sys
from pathlib import Path

import torch

from minibeit3.backbones import preset
from minibeit3.batches import generator_of
from minibeit3.data.images import to_model
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.pixel_codes import PixelCodes

PICTURES = 4000


def fitted(size: str = "nano") -> PixelCodes:
    """Pixel codes for a preset's patches and number of codes."""
    config = preset(size)
    scenes = SceneCaptions("train", PICTURES, config.image_size)
    images = [image for i in range(PICTURES) if (image := scenes[i].image) is not None]
    codes = PixelCodes(config.image_size, config.patch_size, config.visual_vocab_size)
    pictures = to_model(torch.stack(images), config.image_size) / 2 + 0.5
    return codes.fit(pictures, generator_of(0))


if __name__ == "__main__":
    fitted().save_pretrained(Path(sys.argv[1]))
