"""Draw the README's picture: python tools/readme_picture.py results/readme.png"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from minibeit3 import preset, routing_table
from minibeit3.data.photos import Photos
from minibeit3.explore import core
from minibeit3.masking import blockwise_mask, mask_text, replace_all
from minibeit3.text_tokenizer import TextTokenizer


def masked_pair() -> core.Picture:
    """Chelsea with hidden patches, her caption with hidden words under it."""
    photo = next(p for p in Photos(size=256) if p.key.endswith("chelsea") and p.image is not None)
    assert photo.image is not None
    picture = np.ascontiguousarray(photo.image.permute(1, 2, 0))
    hidden = blockwise_mask(8, 26, torch.Generator().manual_seed(0)).numpy()
    tokenizer = TextTokenizer.lab()
    ids, real = tokenizer.batch([photo.texts[0]], max_length=32)
    g = torch.Generator().manual_seed(2)
    shown, _ = mask_text(ids, real, 0.5, tokenizer.mask_id, tokenizer.vocab_size, g, replace_all)
    words = [tokenizer.piece(i) for i in shown[0].tolist()[1:-1]]
    text = "".join(" ___ " if w == "<mask>" else w.replace("▁", " ") for w in words)
    out = Image.new("RGB", (256, 360), core.PAPER)
    out.paste(Image.fromarray(core.masked_picture(picture, hidden).picture), (0, 20))
    draw, line, y = ImageDraw.Draw(out), "", 290
    for word in text.split():
        if len(line) + len(word) > 32:
            draw.text((0, y), line, core.INK, core.font(15))
            line, y = "", y + 22
        line += word + " "
    draw.text((0, y), line, core.INK, core.font(15))
    return np.asarray(out)


def main(path: Path) -> None:
    """Masked pair at the left, experts by layer at the right."""
    config = preset("tiny")
    tables = {
        "image-text pair: every token attends to all, then meets its expert": routing_table(
            config, config.image_tokens, 24
        ),
    }
    routes = core.routing_picture(tables, width=640, row_height=34).picture
    left = masked_pair()
    height = max(len(left), len(routes))
    out = np.full((height, left.shape[1] + 24 + routes.shape[1], 3), 255, np.uint8)
    out[: len(left), : left.shape[1]] = left
    out[: len(routes), left.shape[1] + 24 :] = routes
    path.write_bytes(core.to_png(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
