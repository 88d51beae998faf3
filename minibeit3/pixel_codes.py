"""The plain visual tokenizer: k-means over the pixels of patches, the control beside VQ-KD."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minibeit3.storage import CheckpointError, check_tensors, read_folder, write_folder

ITERATIONS = 20
SIZES = ("image_size", "patch_size", "channels")


class PixelCodes(nn.Module):
    """A code per patch: the nearest of `codes` prototypes, by squared distance of the pixels.

    Letters: B images, C channels, N patches, V codes. What it knows is colour and edges, nothing
    of what a patch shows: the difference to VQ-KD is what the teacher is worth.
    """

    prototypes: Tensor

    def __init__(self, image_size: int, patch_size: int, codes: int, channels: int = 3) -> None:
        """image_size, patch_size in pixels; the prototypes are zero until `fit`."""
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is no multiple of patch_size {patch_size}")
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.register_buffer("prototypes", torch.zeros(codes, channels * patch_size**2))

    def patches(self, image01: Tensor) -> Tensor:
        """Images in [0, 1], float (B, C, H, W) of any size, to pixels (B, N, C * patch * patch)."""
        p, size = self.patch_size, (self.image_size, self.image_size)
        image = image01
        if tuple(image.shape[2:]) != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        return rearrange(image, "B C (h p) (w q) -> B (h w) (C p q)", p=p, q=p)

    @torch.no_grad()
    def fit(self, image01: Tensor, generator: torch.Generator) -> "PixelCodes":
        """Lloyd's iterations over all patches of the images, from random distinct patches.

        A prototype that loses all patches keeps its place. ValueError when there are fewer
        distinct patches than codes.
        """
        pixels = rearrange(self.patches(image01), "B N D -> (B N) D").unique(dim=0)
        codes = len(self.prototypes)
        if len(pixels) < codes:
            raise ValueError(f"{len(pixels)} distinct patches cannot start {codes} codes")
        chosen = torch.randperm(len(pixels), generator=generator)[:codes]
        centres = pixels[chosen.to(pixels.device)]
        for _ in range(ITERATIONS):
            nearest = _nearest(pixels, centres)
            total = torch.zeros_like(centres).index_add(0, nearest, pixels)
            hits = torch.bincount(nearest, minlength=codes)[:, None]
            centres = torch.where(hits > 0, total / hits.clamp(min=1), centres)
        self.prototypes.copy_(centres)
        return self

    @torch.no_grad()
    def tokens(self, image01: Tensor) -> Tensor:
        """Codes int64 (B, N) of images in [0, 1]."""
        return _nearest(self.patches(image01), self.prototypes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and their manifest into `folder`."""
        sizes = {name: getattr(self, name) for name in SIZES}
        config = {"model": "pixel_codes", **sizes, "codes": len(self.prototypes)}
        write_folder(folder, config, {"prototypes": self.prototypes})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PixelCodes":
        """The tokenizer saved in `folder`; CheckpointError for whatever is wrong with its files."""
        config, tensors = read_folder(folder)
        names = {"codes", *SIZES}
        whole = all(isinstance(config.get(name), int) and config[name] > 0 for name in names)
        if config.get("model") != "pixel_codes" or not whole or config.keys() != {"model", *names}:
            raise CheckpointError(f"{folder} does not describe pixel codes: {config}")
        codes = cls(**{name: config[name] for name in names})
        check_tensors(tensors, {"prototypes": tuple(codes.prototypes.shape)}, str(folder))
        codes.load_state_dict(tensors)
        return codes


def _nearest(pixels: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest row of centres (V, D) for each of pixels (..., D)."""
    return (pixels @ centres.T - centres.square().sum(1) / 2).argmax(dim=-1)
