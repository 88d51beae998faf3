"""Held-out compositional splits: what a training set never shows, and a control that is fair.

Each holdout has four splits. "train", "val" and "control" follow the training rule; "test" holds
only what training never showed. Report accuracy(control) - accuracy(test): both are unseen items,
and only the composition differs (idea of CLEVR-CoGenT, arXiv 1612.06890).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import blake2b
from itertools import combinations, permutations
from random import Random

from minibeit3.data.emoji import concepts, held_codes
from minibeit3.data.scene_text import related
from minibeit3.data.scenes import Scene, Thing, World, any_thing, furnish, pick

SPLITS = ("train", "val", "test", "control")
HOLDOUTS = {
    "combo": "triangles in the first four colours and stars in the last four, swapped in the test",
    "relation": "a star left of a cross, a circle of a triangle, a ring of a square",
    "count": "exactly four circles",
    "size": "five or six things (training has at most four)",
    "hop": "two-hop questions",
    "style": "emoji of the OpenMoji vendor",
    "pair": "one in ten pairs of emoji nouns in the same scene",
    "any": "all that an emoji test holds out: the vendor OpenMoji, nouns, pairs of nouns",
}
SHAPES_ONLY = ("combo", "relation", "count", "size", "hop")
EMOJI_ONLY = ("style", "pair", "any")
HELD_PAIRS = (("star", "cross"), ("circle", "triangle"), ("ring", "square"))  # first left of second


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the scenes of a split may show.

    thing: may a thing like this appear? scene: is a finished scene allowed?
    counts: fewest and most things. kinds: what a random scene draws its few kinds from.
    must: groups of kinds, of which a random scene starts with one, so that rare scenes need no
    long search. held: True in the test split of a holdout.
    """

    counts: tuple[int, int]
    styles: tuple[str, ...]
    kinds: tuple[str, ...]
    thing: Callable[[Thing], bool]
    scene: Callable[[Scene], bool]
    must: tuple[tuple[str, ...], ...] = ((),)
    holdout: str | None = None
    held: bool = False

    def at_most(self, things: int | None) -> "Rule":
        """The rule for scenes of no more things; None = itself. ValueError out of its range."""
        few, limit = self.counts
        if things is None:
            return self
        if not few <= things <= limit:
            raise ValueError(f"most {things} things: this split has {few} to {limit}")
        return replace(self, counts=(few, things))


def rule_for(world: World, split: str, holdout: str | None = None) -> Rule:
    """The rule of a split; ValueError for unknown names or a holdout of the other world."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    free = Rule(
        counts=world.counts,
        styles=world.styles,
        kinds=world.kinds,
        thing=_anything,
        scene=_anything,
    )
    if holdout is None:
        if split == "control":
            raise ValueError("split 'control' belongs to a holdout: pass holdout=, or use 'test'")
        return free
    known = SHAPES_ONLY if world.name == "shapes" else EMOJI_ONLY
    if holdout not in known:
        raise ValueError(
            f"unknown holdout {holdout!r} in the {world.name} world: {', '.join(known)}"
        )
    held = split == "test"
    rule = replace(free, holdout=holdout, held=held)
    match holdout:
        case "combo":
            early = frozenset(world.colours[: len(world.colours) // 2])
            thing = partial(combo_allows, early=early, turned=held)
            must = (("triangle",), ("star",)) if held else ((),)
            scene = shows_turned_kind if held else _anything
            return replace(rule, thing=thing, scene=scene, must=must)
        case "relation":
            scene = partial(_equals, shows_held_relation, held)
            return replace(rule, scene=scene, must=HELD_PAIRS if held else ((),))
        case "count":
            scene = partial(_equals, four_circles, held)
            if not held:
                return replace(rule, scene=scene)
            return replace(rule, scene=scene, must=(("circle",) * 4,), counts=(4, world.counts[1]))
        case "size":
            few, most = world.counts
            return replace(rule, counts=(5, most) if held else (few, 4))
        case "style":
            styles = tuple(style for style in world.styles if (style == "openmoji") == held)
            return replace(rule, styles=styles)
        case "pair":
            return replace(rule, scene=partial(_equals, shows_held_pair, held))
        case "any":
            styles = tuple(style for style in world.styles if (style == "openmoji") == held)
            new = held_nouns()
            if held:
                must = tuple((kind,) for kind in world.kinds if kind in new)
                return replace(rule, styles=styles, must=must)
            kinds = tuple(kind for kind in world.kinds if kind not in new)
            thing, scene = partial(_known_kind, new=new), partial(_equals, shows_held_pair, False)
            return replace(rule, styles=styles, kinds=kinds, thing=thing, scene=scene)
        case _:  # "hop" restricts the questions, not the scenes
            return rule


def random_scene(rng: Random, world: World, rule: Rule) -> Scene:
    """A scene of the rule: number of things uniform, attributes uniform among the allowed ones."""
    few, most = rule.counts
    count = few + int(rng.random() * (most - few + 1))
    must = pick(rng, rule.must)
    while True:
        kinds = [pick(rng, rule.kinds) for _ in range(world.variety)]
        things = [allowed_thing(rng, world, rule, (kind,)) for kind in must]
        things += [allowed_thing(rng, world, rule, kinds) for _ in range(count - len(must))]
        scene = furnish(rng, world, things, rule.styles)
        if rule.scene(scene):
            return scene


def allowed_thing(rng: Random, world: World, rule: Rule, kinds: Sequence[str] = ()) -> Thing:
    """A random thing that the rule allows."""
    while not rule.thing(thing := any_thing(rng, world, kinds)):
        pass
    return thing


def shows_turned_kind(scene: Scene) -> bool:
    """True when the scene has a kind whose colours the "combo" holdout swaps."""
    return any(thing.kind in ("triangle", "star") for thing in scene.things)


def shows_held_relation(scene: Scene) -> bool:
    """True when a held-out ordered pair of kinds stands left to right."""
    return any(
        (a.kind, b.kind) in HELD_PAIRS and related(a, b, "left of")
        for a, b in permutations(scene.things, 2)
    )


def four_circles(scene: Scene) -> bool:
    """True when the scene has exactly four circles."""
    return sum(thing.kind == "circle" for thing in scene.things) == 4


def held_pair(a: str, b: str) -> bool:
    """True for one in ten unordered pairs of different nouns, by a stable hash."""
    return a != b and blake2b("+".join(sorted((a, b))).encode(), digest_size=2).digest()[0] < 26


def shows_held_pair(scene: Scene) -> bool:
    """True when two of its kinds are a held-out pair."""
    return any(held_pair(a.kind, b.kind) for a, b in combinations(scene.things, 2))


@cache
def held_nouns() -> frozenset[str]:
    """Names of the emoji that `Emoji` holds out as new concepts or new compositions."""
    return frozenset(concept.name for concept in concepts() if concept.code in held_codes())


def combo_allows(thing: Thing, early: frozenset[str], turned: bool) -> bool:
    """Triangles in the early colours and stars in the others; `turned` swaps the two."""
    if thing.kind == "triangle":
        return (thing.colour in early) != turned
    return thing.kind != "star" or (thing.colour in early) == turned


def _known_kind(thing: Thing, new: frozenset[str]) -> bool:
    return thing.kind not in new


def _equals(shows: Callable[[Scene], bool], held: bool, scene: Scene) -> bool:
    return shows(scene) == held


def _anything(_: object) -> bool:
    return True
