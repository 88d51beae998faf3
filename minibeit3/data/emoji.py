"""Emoji as image-text pairs: 1,512 concepts, each drawn by four vendors, with names and keywords.

The drawings lie in `data_samples/emoji` as one RGBA atlas per vendor; counts, licences and known
defects are in `data_samples/README.md`. Three ways to hold something out, fixed by code point in
`splits.json`:

- style: all concepts, test in the vendor that was not trained on (OpenMoji: outlined, far from the
  others; Twemoji is the near alternative, chosen by naming `styles`);
- concept: a tenth of the names; all genders of a role stay on one side;
- composition: of each man/woman pair one member is held out, alternately: both words and both kinds
  of drawing were seen, their combination was not. Split "control" holds the members that were seen.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.utils.data import Dataset

from minibeit3.data.paths import data_root
from minibeit3.data.sample import Sample

STYLES = ("noto", "twemoji", "fluent3d", "openmoji")
HOLDOUTS = {
    "style": ("train", "test"),
    "concept": ("train", "test"),
    "composition": ("train", "test", "control"),
}
CELL, COLUMNS = 64, 32


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji, whoever draws it.

    code: hexadecimal code points without variation selectors, "1f9d1-200d-1f692"; the stable key.
    emoji: the character itself. name: CLDR short name. keywords: CLDR search words, may be empty.
    group, subgroup: Unicode's own classification.
    index: cell of every atlas, rows of 32.
    gender: "man", "woman", "person" (all three words occur in the role's family), else None.
    role: the name without its person word ("firefighter"), otherwise the name.
    gloss: WordNet's definition when the name is a noun there, else None; a heuristic choice of
        sense that can be wrong.
    concrete: a countable thing with a name of one or two words, fit for emoji scenes.
    """

    code: str
    emoji: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    index: int
    gender: str | None
    role: str
    gloss: str | None
    concrete: bool


@cache
def concepts() -> tuple[Concept, ...]:
    """All 1,512 concepts in atlas order (sorted by code point)."""
    lines = (data_root() / "emoji/concepts.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(Concept(**row | {"keywords": tuple(row["keywords"])}) for row in rows)


@cache
def subgroups() -> tuple[str, ...]:
    """The 92 class names of `Sample.label`, sorted."""
    return tuple(sorted({concept.subgroup for concept in concepts()}))


@cache
def emoji_atlas(style: str) -> np.ndarray:
    """Drawings of one vendor, uint8 (1512, 64, 64, 4) RGBA, read-only, in `concepts()` order.

    Colour where alpha is 0 means nothing: composite before use. Raises ValueError for an unknown
    style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose from {', '.join(STYLES)}")
    with Image.open(data_root() / f"emoji/{style}_{CELL}.webp", formats=("WEBP",)) as picture:
        atlas = np.asarray(picture.convert("RGBA"))
    cells = rearrange(atlas, "(row h) (col w) c -> (row col) h w c", h=CELL, col=COLUMNS)
    cells = np.ascontiguousarray(cells[: len(concepts())])
    cells.flags.writeable = False
    return cells


@cache
def identical(style: str) -> dict[str, tuple[str, ...]]:
    """Code -> all codes with exactly this drawing in this style, only where there are several.

    Retrieval must count them as one picture with several right captions.
    """
    groups = json.loads((data_root() / "emoji/identical.json").read_text("utf-8"))[style]
    return {code: tuple(group) for group in groups for code in group}


def captions(concept: Concept) -> tuple[str, ...]:
    """Up to five texts, as COCO has: name; a picture of it; name + 2 keywords; 3 keywords; gloss.

    Texts that need keywords or a gloss are left out where there are none.
    """
    name = concept.name
    words = [word for word in concept.keywords if word.lower() != name.lower()]
    article = "an" if re.match(r"(?!uni|one|eu)[aeiou]", name, flags=re.I) else "a"
    texts = [name, f"a picture of {article} {name}", ", ".join([name, *words[:2]])]
    texts += [" ".join(words[:3]), concept.gloss or ""]
    return tuple(dict.fromkeys(text for text in texts if text))


class Emoji(Dataset[Sample]):
    """Samples of `size` x `size` emoji on a plain ground.

    styles: vendors; None takes those of the split: for holdout "style" Noto, Twemoji and Fluent in
        training and OpenMoji in the test, otherwise the first three.
    split: "train", "test", or "control" with holdout "composition".
    background: "white", "random" (a light colour per item, fixed by `seed` and the key), or RGB.

    Sample: key "emoji/<style>/<code>"; texts as `captions`, the exact name first; label indexes
    `subgroups()`; info has code, style, name, group, subgroup and `same` (codes with this drawing).
    Raises ValueError for an unknown style, split, holdout, background or size.
    """

    def __init__(
        self,
        styles: Sequence[str] | None = None,
        split: str = "train",
        holdout: str = "style",
        size: int = CELL,
        background: str | tuple[int, int, int] = "white",
        seed: int = 0,
    ) -> None:
        if holdout not in HOLDOUTS:
            raise ValueError(f"unknown holdout {holdout!r}: choose from {', '.join(HOLDOUTS)}")
        if split not in HOLDOUTS[holdout]:
            raise ValueError(
                f"holdout {holdout!r} has no split {split!r}: choose from {HOLDOUTS[holdout]}"
            )
        if size < 1:
            raise ValueError(f"size is {size} pixels, must be at least 1")
        if isinstance(background, str) and background not in ("white", "random"):
            raise ValueError(f'background {background!r}: choose "white", "random" or (r, g, b)')
        if styles is None:
            styles = ("openmoji",) if (holdout, split) == ("style", "test") else STYLES[:3]
        self.size, self.background, self.seed = size, background, seed
        self.atlases = {style: emoji_atlas(style) for style in styles}
        self.labels = {name: index for index, name in enumerate(subgroups())}
        chosen = _chosen(holdout, split)
        self.items = [(s, c) for s in styles for c in concepts() if c.code in chosen]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        style, concept = self.items[index]
        key = f"emoji/{style}/{concept.code}"
        image = _composite(self.atlases[style][concept.index], self._ground(key))
        if self.size != CELL:
            picture = Image.fromarray(image)
            image = np.array(picture.resize((self.size, self.size), Image.Resampling.BICUBIC))
        return Sample(
            key=key,
            image=rearrange(torch.from_numpy(image), "h w c -> c h w").contiguous(),
            texts=captions(concept),
            label=self.labels[concept.subgroup],
            info={
                "code": concept.code,
                "style": style,
                "name": concept.name,
                "group": concept.group,
                "subgroup": concept.subgroup,
                "same": identical(style).get(concept.code, (concept.code,)),
            },
        )

    def _ground(self, key: str) -> tuple[int, int, int]:
        if isinstance(self.background, tuple):
            return self.background
        if self.background == "white":
            return (255, 255, 255)
        red, green, blue = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()[:3]
        return (160 + red * 96 // 256, 160 + green * 96 // 256, 160 + blue * 96 // 256)


@cache
def held_codes() -> frozenset[str]:
    """Codes that a test of new concepts or of new compositions shows: pretraining leaves them."""
    return _chosen("concept", "test") | _chosen("composition", "test")


@cache
def _chosen(holdout: str, split: str) -> frozenset[str]:
    """Codes of one split."""
    everything = frozenset(concept.code for concept in concepts())
    if holdout == "style":
        return everything
    held = json.loads((data_root() / "emoji/splits.json").read_text("utf-8"))[holdout]
    return everything - set(held["test"]) if split == "train" else frozenset(held[split])


def _composite(cell: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    """RGBA (h, w, 4) over a colour: uint8 (h, w, 3)."""
    alpha = cell[..., 3:].astype(np.uint16)
    mixed = cell[..., :3] * alpha + np.array(ground, np.uint16) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
