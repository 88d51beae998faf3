"""Scenes with exact ground truth: what stands where, drawn in numpy.

A scene is a flat list of things in the unit square (x to the right, y down). Everything else of
the lab's synthetic tasks (captions, questions, statements, boxes, regions) is computed from it, so
no annotation can be wrong. This file holds the grammar of scenes and the world of coloured shapes;
`emoji_scenes` adds a second world of real drawings. The margin around relations follows CLEVR
(arXiv 1612.06890): a relation is asked or told only where it is clear.

Legend: H = W = size in pixels, n things, h and w the sides of one drawn thing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple, TypeVar

import numpy as np

Item = TypeVar("Item")

SIZES = ("small", "large")
EDGE = 0.02  # free border of a scene
SIDES = (32, 512)  # smallest and largest picture that `draw` makes, in pixels


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: kind ("star", or an emoji noun), colour ("" in the emoji world), size word.

    cx, cy: centre in the unit square. shade in [-1, 1]: small brightness jitter of the colour.
    """

    kind: str
    colour: str
    size: str
    cx: float = 0.5
    cy: float = 0.5
    shade: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and things that do not overlap; `style` names the emoji vendor, else ""."""

    world: str
    background: str
    things: tuple[Thing, ...]
    style: str = ""


class Stamp(NamedTuple):
    """A drawn thing: its corner in pixels, alpha float32 (h, w), rgb float32 (3,) or (h, w, 3)."""

    top: int
    left: int
    alpha: np.ndarray
    rgb: np.ndarray


@dataclass(frozen=True, kw_only=True)
class World:
    """The vocabulary of a scene grammar and the way its things are drawn.

    plurals: kind -> plural, in a fixed order. colours: empty where things have no colour word.
    noun, nouns: the word for any thing. counts: fewest and most things of a scene.
    radii: size word -> half the extent of a thing. gap: least free space between two things.
    square: True when things may fill their squares, so that squares are kept apart, not discs.
    classes: kind -> segmentation class (0 is the ground). styles: vendors of the drawings.
    variety: most different kinds of a random scene, so that some repeat; 0 = no limit.
    """

    name: str
    plurals: Mapping[str, str]
    colours: tuple[str, ...]
    noun: str
    nouns: str
    counts: tuple[int, int]
    radii: Mapping[str, float]
    gap: float
    backgrounds: Mapping[str, tuple[int, int, int]]
    classes: Mapping[str, int]
    stamp: Callable[[Scene, Thing, int], Stamp]
    styles: tuple[str, ...] = ("",)
    variety: int = 0
    square: bool = False

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """All kinds, in their fixed order."""
        return tuple(self.plurals)


def item_rng(*name: object) -> Random:
    """A generator that depends only on `name` (world, task, split, index): no order, no workers.

    Draw with `.random()`, `pick` and `shuffled`: Python promises that `random()` gives the same
    numbers in every version, but not `choice` or `shuffle`.
    """
    digest = blake2b("/".join(map(str, name)).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def pick(rng: Random, options: Sequence[Item]) -> Item:
    """One of `options`, uniformly."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: Random, options: Sequence[Item]) -> list[Item]:
    """All of `options` in uniformly random order."""
    return sorted(options, key=lambda _: rng.random())


# ---- making a scene


def any_thing(rng: Random, world: World, kinds: Sequence[str] = ()) -> Thing:
    """A thing with every attribute drawn uniformly (its kind from `kinds`), not placed yet."""
    colour = pick(rng, world.colours) if world.colours else ""
    return Thing(pick(rng, kinds or world.kinds), colour, pick(rng, SIZES))


def place(rng: Random, world: World, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """The same things at random centres with no overlap, and a shade each; any order is as likely.

    Large things are placed first, and a crowd that does not fit is tried again from the start.
    """
    order = sorted(shuffled(rng, things), key=lambda thing: -world.radii[thing.size])
    while True:
        placed: list[tuple[float, float, float]] = []
        for thing in order:
            r = world.radii[thing.size]
            low, room = EDGE + r, 1 - 2 * (EDGE + r)
            for _ in range(12):
                x = round(low + rng.random() * room, 4)
                y = round(low + rng.random() * room, 4)
                if _free(world, x, y, r, placed):
                    placed.append((x, y, r))
                    break
            else:
                break
        else:
            return tuple(
                Thing(t.kind, t.colour, t.size, x, y, round(2 * rng.random() - 1, 3))
                for t, (x, y, _) in zip(order, placed, strict=True)
            )


def _free(
    world: World, x: float, y: float, r: float, placed: list[tuple[float, float, float]]
) -> bool:
    if world.square:
        return all(max(abs(x - u), abs(y - v)) >= r + q + world.gap for u, v, q in placed)
    return all((x - u) ** 2 + (y - v) ** 2 >= (r + q + world.gap) ** 2 for u, v, q in placed)


def fits(world: World, things: Sequence[Thing]) -> bool:
    """True when no two things overlap and none leaves the frame."""
    placed: list[tuple[float, float, float]] = []
    for thing in things:
        r = world.radii[thing.size]
        low = EDGE + r - 1e-4  # centres are rounded to four decimals
        inside = all(low <= c <= 1 - low for c in (thing.cx, thing.cy))
        if not inside or not _free(world, thing.cx, thing.cy, r, placed):
            return False
        placed.append((thing.cx, thing.cy, r))
    return True


def furnish(
    rng: Random, world: World, things: Sequence[Thing], styles: Sequence[str] = ()
) -> Scene:
    """A scene with these things, placed at random on a random background, in one of `styles`."""
    background = pick(rng, tuple(world.backgrounds))
    return Scene(
        world.name, background, place(rng, world, things), pick(rng, styles or world.styles)
    )


# ---- drawing a scene


def draw(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture of a scene, uint8 (H, W, 3), antialiased; the same scene gives the same bytes.

    Raises ValueError when `size` is outside 32..512 or the scene names an unknown world.
    """
    if not SIDES[0] <= size <= SIDES[1]:
        raise ValueError(f"picture size {size} is outside {SIDES[0]}..{SIDES[1]} pixels")
    ground = world_named(scene.world).backgrounds[scene.background]
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = ground
    for top, left, alpha, rgb in _stamps(scene, size):
        patch = canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]]
        patch += alpha[..., None] * (rgb - patch)
    canvas += 0.5
    return canvas.astype(np.uint8)


def boxes(scene: Scene, size: int = 64) -> np.ndarray:
    """Tight boxes of the things in scene order, float32 (n, 4): x0 y0 x1 y1, ends exclusive."""
    found = []
    for top, left, alpha, _ in _stamps(scene, size):
        rows, columns = (np.nonzero(_solid(alpha).any(axis))[0] for axis in (1, 0))
        found.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
    return np.array(found, np.float32).reshape(-1, 4)


def regions(scene: Scene, size: int = 64) -> np.ndarray:
    """Class of every pixel, int64 (H, W): 0 the ground, else `world.classes[kind]`."""
    classes = world_named(scene.world).classes
    return _paint(scene, size, [classes[thing.kind] for thing in scene.things])


def instances(scene: Scene, size: int = 64) -> np.ndarray:
    """Thing of every pixel, int64 (H, W): 0 the ground, else 1 + its index in `scene.things`."""
    return _paint(scene, size, list(range(1, len(scene.things) + 1)))


def _paint(scene: Scene, size: int, values: list[int]) -> np.ndarray:
    canvas = np.zeros((size, size), np.int64)
    for value, (top, left, alpha, _) in zip(values, _stamps(scene, size), strict=True):
        canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]][_solid(alpha)] = value
    return canvas


def _solid(alpha: np.ndarray) -> np.ndarray:
    """True where a thing covers more than half a pixel, or half its best where none is so full."""
    return alpha > (0.5 if alpha.max() > 0.5 else alpha.max() / 2)


def _stamps(scene: Scene, size: int) -> list[Stamp]:
    stamp = world_named(scene.world).stamp
    return [_cropped(stamp(scene, thing, size), size) for thing in scene.things]


def _cropped(stamp: Stamp, size: int) -> Stamp:
    """Without the rows and columns past the edge: in small pictures the soft rim can reach it."""
    top, left, alpha, rgb = stamp
    rows = slice(max(0, -top), size - top)
    columns = slice(max(0, -left), size - left)
    rgb = rgb[rows, columns] if rgb.ndim == 3 else rgb
    return Stamp(max(0, top), max(0, left), alpha[rows, columns], rgb)


# ---- the shapes world


def _ring(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.75 * r) - 0.25 * r


def _cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    x, y, arm = np.abs(x), np.abs(y), 0.36 * r
    return np.minimum(np.maximum(x - r, y - arm), np.maximum(x - arm, y - r))


# Unit vectors to the five tips of a star that stands upright (y points down).
TIPS = np.array(
    [
        (0.0, -1.0),
        (0.951057, -0.309017),
        (0.587785, 0.809017),
        (-0.587785, 0.809017),
        (-0.951057, -0.309017),
    ],
    np.float32,
)


def _star(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """A pentagram is where at most one of its five lines has the point on its outer side."""
    tips = TIPS[:, :, None, None]
    outside = tips[:, 0] * x + tips[:, 1] * y - np.float32(0.33 * r)
    return np.partition(outside, 3, axis=0)[3]


# Signed distance in pixels, negative inside; x (1, w) and y (h, 1) are measured from the centre.
# No corner is farther than 1.07 r from the centre, so that discs kept apart keep shapes apart.
DISTANCES: Mapping[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": lambda x, y, r: np.sqrt(x * x + y * y) - r,
    "square": lambda x, y, r: np.maximum(np.abs(x), np.abs(y)) - 0.75 * r,
    "triangle": lambda x, y, r: np.maximum(y - 0.6 * r, (1.6 * np.abs(x) - 0.88 * (y + r)) / 1.826),
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
COLOURS = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (36, 84, 204),
    "yellow": (240, 200, 20),
    "purple": (135, 55, 165),
    "orange": (245, 125, 15),
    "cyan": (25, 185, 205),
    "gray": (120, 120, 120),
}


PHASES = 4  # a shape is drawn at the nearest quarter of a pixel, so that its coverage is cached


@cache
def _coverage(kind: str, r: float, x_phase: int, y_phase: int) -> tuple[int, int, np.ndarray]:
    """First row, first column and alpha of a shape whose centre lies in pixel (0, 0)."""
    reach = np.arange(-int(r) - 2, int(r) + 3, dtype=np.float32) + np.float32(0.5)
    x = reach[None, :] - np.float32((x_phase + 0.5) / PHASES)
    y = reach[:, None] - np.float32((y_phase + 0.5) / PHASES)
    alpha = np.clip(0.5 - DISTANCES[kind](x, y, r), 0, 1)
    rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    trimmed = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    trimmed.setflags(write=False)
    return rows[0] - int(r) - 2, columns[0] - int(r) - 2, trimmed


def stamp_shape(_: Scene, thing: Thing, size: int) -> Stamp:
    """A shape from its signed distance; coverage falls from 1 to 0 within one pixel."""
    x, x_phase = divmod(int(thing.cx * size * PHASES), PHASES)
    y, y_phase = divmod(int(thing.cy * size * PHASES), PHASES)
    row, column, alpha = _coverage(thing.kind, SHAPES.radii[thing.size] * size, x_phase, y_phase)
    rgb = np.array(COLOURS[thing.colour], np.float32) * np.float32(1 + 0.08 * thing.shade)
    return Stamp(y + row, x + column, alpha, np.minimum(rgb, 255))


SHAPES = World(
    name="shapes",
    plurals={
        "circle": "circles",
        "square": "squares",
        "triangle": "triangles",
        "star": "stars",
        "cross": "crosses",
        "ring": "rings",
    },
    colours=tuple(COLOURS),
    noun="shape",
    nouns="shapes",
    counts=(1, 6),
    radii={"small": 0.085, "large": 0.14},
    gap=0.02,
    backgrounds={"white": (250, 250, 250), "cream": (244, 236, 216), "sky": (218, 230, 242)},
    classes={kind: i for i, kind in enumerate(DISTANCES, 1)},
    stamp=stamp_shape,
)


def world_named(name: str) -> World:
    """The world "shapes" or "emoji"; ValueError for any other name."""
    if name == "shapes":
        return SHAPES
    if name == "emoji":
        # Imported here: the emoji world is built on this file and reads the emoji atlases.
        from minibeit3.data.emoji_scenes import emoji_world

        return emoji_world()
    raise ValueError(f"unknown world {name!r}: choose 'shapes' or 'emoji'")


# ---- scenes as plain data


def to_dict(scene: Scene) -> dict[str, object]:
    """The scene as JSON-like data, for `Sample.info` and files."""
    return {
        "world": scene.world,
        "background": scene.background,
        "style": scene.style,
        "things": [
            {
                "kind": t.kind,
                "colour": t.colour,
                "size": t.size,
                "cx": t.cx,
                "cy": t.cy,
                "shade": t.shade,
            }
            for t in scene.things
        ],
    }


def from_dict(data: Mapping[str, Any]) -> Scene:
    """The scene of `to_dict`; ValueError when it is malformed or its things do not fit."""
    try:
        things = tuple(Thing(**thing) for thing in data["things"])
        scene = Scene(data["world"], data["background"], things, data["style"])
        world = world_named(scene.world)
        placed = fits(world, things)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a scene: {error}; expected what to_dict returns") from error
    words = [(scene.background, tuple(world.backgrounds)), (scene.style, world.styles)]
    for thing in things:
        words += [
            (thing.kind, world.kinds),
            (thing.colour, world.colours or ("",)),
            (thing.size, SIZES),
        ]
    for word, known in words:
        if word not in known:
            raise ValueError(f"{word!r} is not in the {world.name} world: {', '.join(known)}")
    if not placed:
        raise ValueError("things overlap or leave the frame: move them apart, into 0..1")
    return scene
