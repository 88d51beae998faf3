"""Fourteen free photographs with captions of our own, for masking and attention pictures."""

import json

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.utils.data import Dataset

from minibeit3.data.paths import data_root, inside
from minibeit3.data.sample import Sample

NATIVE = 320


class Photos(Dataset[Sample]):
    """Photographs of `size` x `size` pixels (stored at 320), in the order of `photos.jsonl`.

    Sample: key "photos/<file stem>"; three or four captions; info has title, author, licence and
    source, which must be shown wherever a CC-BY picture is. Raises ValueError for size < 1.
    """

    def __init__(self, size: int = 224) -> None:
        if size < 1:
            raise ValueError(f"size is {size} pixels, must be at least 1")
        self.size, self.folder = size, data_root() / "photos"
        lines = (self.folder / "photos.jsonl").read_text("utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        with Image.open(inside(self.folder, row["file"]), formats=("JPEG",)) as picture:
            picture = picture.convert("RGB")
        if self.size != NATIVE:
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        image = rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w").contiguous()
        return Sample(
            key=f"photos/{row['file'].removesuffix('.jpg')}",
            image=image,
            texts=tuple(row["captions"]),
            info={name: row[name] for name in ("title", "author", "licence", "source")},
        )
