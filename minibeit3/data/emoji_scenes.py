"""The emoji world: scenes of real drawings pasted on coloured grounds, with the same grammar.

Kinds are the concrete nouns of the emoji pack ("cat", "fire engine"), all in the style of one
vendor per scene; boxes and masks come from the drawings' alpha. There are no colour words: what
colour a cat is depends on who drew it. Pictures of OpenMoji are CC BY-SA 4.0, see
`data_samples/README.md`. Use 96 or 128 pixels where details matter.
"""

import re
from functools import cache

import numpy as np
from PIL import Image

from minibeit3.data.emoji import STYLES, concepts, emoji_atlas
from minibeit3.data.scenes import SIZES, Scene, Stamp, Thing, World

IRREGULAR = {
    "bison": "bison",
    "deer": "deer",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "mango": "mangoes",
    "moai": "moai",
    "moose": "moose",
    "mosquito": "mosquitoes",
    "mouse": "mice",
    "ox": "oxen",
    "potato": "potatoes",
    "scarf": "scarves",
    "shrimp": "shrimp",
    "squid": "squid",
    "tomato": "tomatoes",
    "wolf": "wolves",
}
UNCOUNTED = {"coral", "soap", "thread"}
RADII = {"small": 0.11, "large": 0.16}
GROUNDS = {
    "white": (250, 250, 250),
    "sand": (238, 222, 190),
    "mint": (198, 230, 208),
    "sky": (196, 220, 242),
    "rose": (242, 208, 214),
    "lilac": (220, 210, 240),
}


@cache
def emoji_world() -> World:
    """The world of about 450 nouns; reads the names now and the drawings when they are drawn."""
    codes = _cells()
    groups = sorted({concepts()[cell].group for cell in codes.values()})
    return World(
        name="emoji",
        plurals={noun: plural_of(noun) for noun in codes},
        colours=(),
        noun="picture",
        nouns="pictures",
        counts=(2, 4),
        radii=RADII,
        gap=0.02,
        backgrounds=GROUNDS,
        classes={noun: 1 + groups.index(concepts()[cell].group) for noun, cell in codes.items()},
        stamp=stamp_emoji,
        styles=STYLES,
        variety=3,
        square=True,
    )


def plural_of(noun: str) -> str:
    """The English plural of a noun of one or two words; only the last word changes."""
    first, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        plural = IRREGULAR[last]
    elif last.endswith("fish"):
        plural = last
    elif re.search(r"(s|x|z|ch|sh)$", last):
        plural = last + "es"
    elif re.search(r"[^aeiou]y$", last):
        plural = last[:-1] + "ies"
    else:
        plural = last + "s"
    return f"{first} {plural}".strip()


def stamp_emoji(scene: Scene, thing: Thing, size: int) -> Stamp:
    """A drawing at whole pixels, shrunk to the side that its size word asks for."""
    side = round(2 * RADII[thing.size] * size)
    top, left = (int(c * size - side / 2 + 0.5) for c in (thing.cy, thing.cx))
    alpha, rgb = _drawing(scene.style, thing.kind, side)
    return Stamp(top, left, alpha, rgb)


@cache
def _cells() -> dict[str, int]:
    """Noun -> atlas cell. Left out: nouns that mean two things in the grammar.

    "black cat" would also be a cat, and "small airplane" an airplane of the small size.
    """
    names = {concept.name for concept in concepts() if concept.concrete}
    return {
        concept.name: concept.index
        for concept in concepts()
        if concept.concrete
        and concept.name not in UNCOUNTED
        and concept.name.rpartition(" ")[2] not in names - {concept.name}
        and not concept.name.startswith(SIZES)
    }


@cache
def _drawing(style: str, noun: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Alpha float32 (side, side) in 0..1 and rgb float32 (side, side, 3) of a shrunk drawing."""
    cell = emoji_atlas(style)[_cells()[noun]].astype(np.float32)
    premultiplied = np.concatenate([cell[..., :3] * (cell[..., 3:] / 255), cell[..., 3:]], 2)
    # Colours are averaged with their alpha as weight: transparent pixels have no colour.
    channels = [
        np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BOX))
        for channel in np.moveaxis(premultiplied, 2, 0)
    ]
    alpha = channels[3] / 255
    rgb = np.stack(channels[:3], 2) / np.maximum(alpha, 1 / 255)[..., None]
    return alpha, rgb
