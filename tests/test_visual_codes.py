"""Saved visual tokenizers: pixel codes come back as they were, and the folder tells the kind."""

from pathlib import Path

import pytest
import torch

from minibeit3.backbones import preset
from minibeit3.data.emoji import Emoji
from minibeit3.data.paths import data_root
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.pixel_codes import PixelCodes
from minibeit3.storage import CheckpointError
from minibeit3.visual_codes import open_codes
from minibeit3.visual_tokenizer import VQKD

PIXELS = data_root() / "checkpoints/pixels"


def fitted() -> tuple[PixelCodes, torch.Tensor]:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return PixelCodes(16, 8, 4).fit(images, torch.Generator().manual_seed(1)), images


def test_saved_pixel_codes_give_the_same_tokens(tmp_path: Path) -> None:
    codes, images = fitted()
    codes.save_pretrained(tmp_path)
    again = open_codes(tmp_path)
    assert isinstance(again, PixelCodes) and len(set(codes.tokens(images).flatten().tolist())) == 4
    assert torch.equal(again.tokens(images), codes.tokens(images))


def test_the_folder_tells_which_tokenizer_it_holds() -> None:
    assert isinstance(open_codes(data_root() / "checkpoints/vqkd"), VQKD)
    assert isinstance(open_codes(PIXELS), PixelCodes)
    with pytest.raises(CheckpointError, match="no visual tokenizer"):
        open_codes(data_root() / "checkpoints/tiny")


@pytest.mark.parametrize("field", ["image_size", "codes", "patch_size"])
def test_a_changed_config_is_refused(tmp_path: Path, field: str) -> None:
    fitted()[0].save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(f'"{field}"', '"other"'))
    with pytest.raises(CheckpointError):
        PixelCodes.from_pretrained(tmp_path)


def test_the_committed_pixel_codes_fit_nano_and_are_nearly_all_used_on_new_pictures() -> None:
    codes, config = PixelCodes.from_pretrained(PIXELS), preset("nano")
    assert codes.image_size == config.image_size and codes.patch_size == config.patch_size
    assert len(codes.prototypes) == config.visual_vocab_size
    scenes = SceneCaptions("test", 600, config.image_size)
    emoji = Emoji(split="test", holdout="concept", size=config.image_size, background="random")
    samples = [scenes[i] for i in range(600)] + [emoji[i] for i in range(len(emoji))]
    images = torch.stack([s.image for s in samples]).float() / 255  # pyright: ignore
    assert len(codes.tokens(images).unique()) >= 0.95 * len(codes.prototypes)
