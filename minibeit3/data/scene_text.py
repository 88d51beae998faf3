"""Captions of a scene, and the checker that reads any caption back and tests it on a scene.

Three grammars: an attribute list ("a small red star and a large blue ring"), a relation ("the star
is left of the ring") and a count ("two circles and one cross"). A caption is scored by its meaning:
`parse_caption` turns it into a claim and the claim is evaluated on the scene, so every true caption
of the grammar is right, however it is worded.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations
from random import Random

from minibeit3.data.scenes import SIZES, Scene, Thing, World, pick, world_named

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
# relation -> axis (0 = x, 1 = y) and the sign of (first - second) along it
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
MARGIN = 0.10  # closer centres are neither left nor right, above nor below


@dataclass(frozen=True, slots=True)
class Phrase:
    """What a noun phrase says about a thing; "" is left unsaid ("the red shape" has no kind)."""

    size: str = ""
    colour: str = ""
    kind: str = ""

    def fits(self, thing: Thing) -> bool:
        """True when the thing has everything the phrase says."""
        return (
            self.kind in ("", thing.kind)
            and self.colour in ("", thing.colour)
            and self.size in ("", thing.size)
        )

    def say(self, world: World, plural: bool = False) -> str:
        """The phrase without article: "small red star", "red shapes"."""
        if not self.kind:
            noun = world.nouns if plural else world.noun
        else:
            noun = world.plurals[self.kind] if plural else self.kind
        return " ".join(word for word in (self.size, self.colour, noun) if word)

    def said(self) -> tuple[str, ...]:
        """Names of the attributes it mentions."""
        return tuple(name for name in ("size", "colour", "kind") if getattr(self, name))

    def only(self, scene: Scene) -> Thing | None:
        """The one thing of the scene that fits, None when there is none or more than one."""
        found = [thing for thing in scene.things if self.fits(thing)]
        return found[0] if len(found) == 1 else None


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"an {noun}" if re.match(r"(?!eu|ewe|uni)[aeiou]", noun) else f"a {noun}"


def related(a: Thing, b: Thing, relation: str) -> bool | None:
    """True, or False when the opposite relation holds; None when the centres are too close."""
    axis, sign = RELATIONS[relation]
    gap = sign * ((a.cy - b.cy) if axis else (a.cx - b.cx))
    return None if abs(gap) <= MARGIN else gap > 0


# ---- claims: what a caption says


@dataclass(frozen=True)
class Listing:
    """Each phrase is true of a thing of its own."""

    phrases: tuple[Phrase, ...]

    def holds(self, scene: Scene) -> bool:
        """True when the phrases can be given to different things."""
        return any(
            all(phrase.fits(thing) for phrase, thing in zip(self.phrases, things, strict=True))
            for things in permutations(scene.things, len(self.phrases))
        )


@dataclass(frozen=True)
class Relation:
    """ "The a is `relation` the b": both must be unique, and the relation clear."""

    a: Phrase
    relation: str
    b: Phrase

    def holds(self, scene: Scene) -> bool:
        """True when both exist once and the relation holds by more than the margin."""
        a, b = self.a.only(scene), self.b.only(scene)
        return a is not None and b is not None and related(a, b, self.relation) is True

    def kinds_from_left(self) -> tuple[str, str] | None:
        """The two kinds from left to right; None for above and below."""
        kinds = (self.a.kind, self.b.kind)
        return {"left of": kinds, "right of": kinds[::-1]}.get(self.relation)


@dataclass(frozen=True)
class Count:
    """Exactly so many things fit each phrase."""

    counts: tuple[tuple[int, Phrase], ...]

    def holds(self, scene: Scene) -> bool:
        """True when every count is exact."""
        return all(sum(map(phrase.fits, scene.things)) == n for n, phrase in self.counts)


Claim = Listing | Relation | Count


def parse_caption(caption: str, world: World) -> Claim:
    """What the caption claims; ValueError that shows the part outside the grammar."""
    relation_of, listed_one, counted_one = _claim_patterns(world.name)
    if match := relation_of.fullmatch(caption):
        first, relation, second = match.groups()
        return Relation(read_phrase(first, world), relation, read_phrase(second, world))
    parts = caption.split(" and ")
    listed = [listed_one.fullmatch(part) for part in parts]
    if all(listed):
        return Listing(tuple(read_phrase(match[1], world) for match in listed if match))
    counted = [counted_one.fullmatch(part) for part in parts]
    if all(counted):
        return Count(
            tuple(
                (NUMBERS.index(match[1] or match[3]), read_phrase(match[2] or match[4], world))
                for match in counted
                if match
            )
        )
    fits_neither = (p for p, a, b in zip(parts, listed, counted, strict=True) if not (a or b))
    wrong = next(fits_neither, caption)
    raise ValueError(
        f"{wrong!r} is outside the caption grammar: say 'a small red star and ...', "
        "'the star is left of the ring' or 'two circles and one cross'"
    )


def is_true(caption: str, scene: Scene) -> bool:
    """True when the caption belongs to the grammar and holds in the scene."""
    try:
        claim = parse_caption(caption, world_named(scene.world))
    except ValueError:
        return False  # a sentence outside the grammar claims nothing that the scene could confirm
    return claim.holds(scene)


@cache
def phrase_patterns(world_name: str) -> tuple[str, str]:
    """Regular expressions, without groups, of a singular and a plural noun phrase of the world."""
    world = world_named(world_name)
    modifiers = f"(?:{_choice(SIZES)} )?"
    if world.colours:
        modifiers += f"(?:{_choice(world.colours)} )?"
    one = modifiers + _choice((*world.kinds, world.noun))
    return one, modifiers + _choice((*world.plurals.values(), world.nouns))


def read_phrase(text: str, world: World) -> Phrase:
    """The phrase of a text that matches one of `phrase_patterns`."""
    size = next((word for word in SIZES if text.startswith(word + " ")), "")
    text = text.removeprefix(size).lstrip()
    colour = next((word for word in world.colours if text.startswith(word + " ")), "")
    noun = text.removeprefix(colour).lstrip()
    return Phrase(size, colour, _kinds(world.name)[noun])


def _choice(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})"


@cache
def _claim_patterns(world_name: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Patterns of a relation, of one listed thing and of one count."""
    one, many = phrase_patterns(world_name)
    several = _choice(number for number in NUMBERS if number != "one")
    return (
        re.compile(f"the ({one}) is ({_choice(RELATIONS)}) the ({one})"),
        re.compile(f"an? ({one})"),
        re.compile(f"(one) ({one})|({several}) ({many})"),
    )


@cache
def _kinds(world_name: str) -> dict[str, str]:
    world = world_named(world_name)
    kinds = {plural: kind for kind, plural in world.plurals.items()}
    return kinds | {kind: kind for kind in world.kinds} | {world.noun: "", world.nouns: ""}


# ---- what the generator says


def canonical_caption(scene: Scene) -> str:
    """The one reference caption: every thing, large before small, then from left to right."""
    return " and ".join(_full_names(scene))


def list_captions(scene: Scene) -> list[str]:
    """Attribute lists: every choice of up to three things, in the canonical order."""
    names = _full_names(scene)
    return [" and ".join(chosen) for chosen in combinations(names, min(3, len(names)))]


def relation_captions(scene: Scene) -> list[str]:
    """All clear relations between things that can be named uniquely, each name kept short."""
    world = world_named(scene.world)
    named = [(thing, _short_name(thing, scene, world)) for thing in scene.things]
    return [
        f"the {a_name} is {relation} the {b_name}"
        for (a, a_name), (b, b_name) in permutations(named, 2)
        if a_name and b_name
        for relation in RELATIONS
        if related(a, b, relation)
    ]


def count_captions(scene: Scene) -> list[str]:
    """Exact counts of one kind, of one colour, or of two kinds (the more frequent one first).

    Equal counts keep the order of the scene: an alphabet would tell one kind from the other.
    """
    world = world_named(scene.world)
    kinds = Counter(thing.kind for thing in scene.things)
    singles = [_counted(n, Phrase(kind=kind), world) for kind, n in kinds.most_common()]
    colours = Counter(thing.colour for thing in scene.things if thing.colour)
    shapes = [_counted(n, Phrase(colour=colour), world) for colour, n in colours.items()]
    return [*singles, *shapes, *map(" and ".join, combinations(singles, 2))]


GRAMMARS = {"list": list_captions, "relation": relation_captions, "count": count_captions}


def caption_distribution(scene: Scene) -> dict[str, float]:
    """Probability of every caption that `draw_caption` can say about the scene."""
    possible = [captions for grammar in GRAMMARS.values() if (captions := grammar(scene))]
    chance: dict[str, float] = {}
    for captions in possible:
        for caption in captions:
            share = 1 / len(captions) / len(possible)
            chance[caption] = chance.get(caption, 0.0) + share
    return chance


def draw_caption(rng: Random, scene: Scene) -> tuple[str, str]:
    """(grammar, caption): one of the grammars that apply, then one of its captions, uniformly."""
    # In random order with the first that applies: the same as a uniform choice among those that do.
    for grammar in sorted(GRAMMARS, key=lambda _: rng.random()):
        if captions := GRAMMARS[grammar](scene):
            return grammar, pick(rng, captions)
    raise ValueError("an empty scene has no caption: give it at least one thing")


def _full_names(scene: Scene) -> list[str]:
    world = world_named(scene.world)
    ordered = sorted(scene.things, key=lambda t: (t.size != "large", t.cx))
    return [article(Phrase(t.size, t.colour, t.kind).say(world)) for t in ordered]


def _short_name(thing: Thing, scene: Scene, world: World) -> str:
    full = Phrase(thing.size, thing.colour, thing.kind)
    for unsaid in ({"size": "", "colour": ""}, {"size": ""}, {"colour": ""}, {}):
        phrase = replace(full, **unsaid)
        if phrase.only(scene):
            return phrase.say(world)
    return ""


def _counted(n: int, phrase: Phrase, world: World) -> str:
    return f"{NUMBERS[n]} {phrase.say(world, plural=n != 1)}"
