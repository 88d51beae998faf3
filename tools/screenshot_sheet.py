"""Draw the sheet of all explorers, as the README shows it:

    cd data_samples/checkpoints/modes && python ../../../tools/screenshot_sheet.py \\
        ../../../results/explorers.png --vqa scenes-vqa-long --retrieval scenes-retrieval \\
        --captioning scenes-captions

Pictures are those that saved notebooks keep, of the lab's own data. Models are fine-tuned where a
checkpoint is named (--retrieval FOLDER and so on), else fresh heads on the pretrained backbone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from minibeit3.checkpoint import from_pretrained
from minibeit3.data.images import to_model
from minibeit3.data.paths import data_root
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_questions import ANSWERS
from minibeit3.data.scenes import from_dict, instances
from minibeit3.explore import (
    AblationExplorer,
    AnswerExplorer,
    AttentionExplorer,
    CaptionExplorer,
    CodebookExplorer,
    MaskExplorer,
    RetrievalExplorer,
    RoutingExplorer,
    core,
)
from minibeit3.explore.fillin import FillIn
from minibeit3.explore.own import squared
from minibeit3.modes import ImageCaptioner, ImageTextRetriever, VisualQuestionAnswerer
from minibeit3.objective import MaskedDataModel
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.visual_tokenizer import VQKD

COLUMN, GAP = 760, 24
TASKS = {
    "retrieval": "RetrievalExplorer",
    "vqa": "AnswerExplorer",
    "captioning": "CaptionExplorer",
}


def explorers(given: dict[str, Path | None]) -> list[Any]:
    """One explorer of each kind, set to something worth looking at."""
    shipped, tokenizer = data_root() / "checkpoints", TextTokenizer.lab()
    model = from_pretrained(shipped / "tiny")
    assert isinstance(model, MaskedDataModel)
    codes, c = VQKD.from_pretrained(shipped / "vqkd"), model.backbone.config
    samples = [SceneCaptions("test", 60, 128)[i] for i in range(40)]
    pictures = torch.stack([s.image for s in samples if s.image is not None])
    texts = [s.texts[0] for s in samples]
    chosen = max(range(40), key=lambda i: len(texts[i]))
    scene = from_dict(samples[chosen].info["scene"])  # type: ignore[arg-type]
    picture, shown = pictures[chosen], squared(pictures[chosen], 256)
    ids = tokenizer.batch([texts[chosen]], 32)[0]
    words = [tokenizer.piece(i).lstrip("▁") for i in ids[0].tolist()]
    inside = instances(scene, 256)
    regions = {f"the {t.colour} {t.kind}": inside == i + 1 for i, t in enumerate(scene.things)}
    image = to_model(picture[None], c.image_size)
    looks = AttentionExplorer(model, shown, image, ids, words, regions=regions)
    looks.token.value = c.image_tokens + words.index(scene.things[0].kind)
    looks.layer.value = c.depth - 1
    masks = MaskExplorer(shown, fill=FillIn(model, tokenizer, picture, texts[chosen], codes.tokens))
    masks.words[-1].value = masks.words[2].value = True
    torch.manual_seed(0)
    heads = {
        "retrieval": ImageTextRetriever(model.backbone),
        "vqa": VisualQuestionAnswerer(model.backbone, len(ANSWERS)),
        "captioning": ImageCaptioner(model.backbone, mask_id=tokenizer.mask_id),
    }
    heads["captioning"].mlm_head.load_state_dict(model.mlm_head.state_dict())
    fine: dict[str, Any] = {k: from_pretrained(p) if p else heads[k] for k, p in given.items()}
    thing = scene.things[0]
    asked = [f"what colour is the {thing.size} {thing.kind}?"]
    answers = AnswerExplorer(fine["vqa"], ANSWERS, tokenizer, scene, asked)
    answers.colour.value = "blue" if thing.colour != "blue" else "red"
    captions = CaptionExplorer(fine["captioning"], tokenizer, picture)
    captions.step.value = 4
    small = torch.nn.functional.interpolate(pictures, codes.config.image_size)
    routing = RoutingExplorer([model.backbone], image, ids)
    routing.stray.value = "one patch"
    return [
        looks,
        masks,
        routing,
        CodebookExplorer(codes, small),
        RetrievalExplorer(fine["retrieval"], pictures, texts, tokenizer),
        answers,
        captions,
        AblationExplorer(compare="words / scenes/test / * / content"),
    ]


def sheet(shown: Sequence[Any], fresh: Sequence[str]) -> core.Picture:
    """The pictures in two columns under their names, each column filled where it is shorter.

    fresh: names of explorers whose model is not fine-tuned, which the sheet says.
    """
    cells = []
    for one in shown:
        picture = Image.fromarray(one.shell.drawn.picture)
        if picture.width > COLUMN:
            height = round(picture.height * COLUMN / picture.width)
            picture = picture.resize((COLUMN, height), Image.Resampling.LANCZOS)
        cell = Image.new("RGB", (COLUMN, picture.height + 34), core.PAPER)
        name = type(one).__name__
        name += " (not fine-tuned)" * (name in fresh)
        ImageDraw.Draw(cell).text((0, 12), name, core.INK, core.font(20), "lm")
        cell.paste(picture, (0, 34))
        cells.append(cell)
    heights, places = [GAP, GAP], []
    for cell in cells:
        side = heights.index(min(heights))
        places.append((GAP + side * (COLUMN + GAP), heights[side]))
        heights[side] += cell.height + GAP
    out = Image.new("RGB", (2 * COLUMN + 3 * GAP, max(heights)), core.PAPER)
    for cell, place in zip(cells, places, strict=True):
        out.paste(cell, place)
    return np.asarray(out)


def main() -> None:
    """Read the command line, write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    for task in TASKS:
        parser.add_argument(f"--{task}", type=Path)
    given = vars(parser.parse_args())
    out = given.pop("out")
    fresh = [name for task, name in TASKS.items() if given[task] is None]
    out.write_bytes(core.to_png(sheet(explorers(given), fresh), colours=256))


if __name__ == "__main__":
    main()
