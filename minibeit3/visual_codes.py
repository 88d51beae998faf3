"""A saved visual tokenizer by its folder, whichever kind it is: VQ-KD or k-means over pixels."""

from pathlib import Path

from minibeit3.pixel_codes import PixelCodes
from minibeit3.storage import CONFIG, CheckpointError, read_json
from minibeit3.visual_tokenizer import VQKD


def open_codes(folder: str | Path) -> VQKD | PixelCodes:
    """The tokenizer in `folder`; CheckpointError or ValueError for a folder that holds none."""
    kind = read_json(Path(folder) / CONFIG).get("model")
    match kind:
        case "vqkd":
            return VQKD.from_pretrained(folder)
        case "pixel_codes":
            return PixelCodes.from_pretrained(folder)
    raise CheckpointError(f"{folder} holds {kind!r}, no visual tokenizer: vqkd or pixel_codes")
