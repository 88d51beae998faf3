"""Questions about a scene: their words, their exact answer, and how a typed one is read.

An answer is None where the question is ill-posed: the thing it names is missing or not unique, or
the relation it asks for is not clear. Such questions are never asked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from minibeit3.data.scene_text import (
    NUMBERS,
    RELATIONS,
    Phrase,
    article,
    phrase_patterns,
    read_phrase,
    related,
)
from minibeit3.data.scenes import SHAPES, SIZES, Scene, World, world_named

NOTHING = Phrase()
YES_NO = ("yes", "no")
COUNTS = NUMBERS[:5]
ANSWERS = (*YES_NO, *COUNTS, *SHAPES.colours, *SHAPES.kinds, *SIZES)
# How a question of each type is said; {a} and {b} are noun phrases, {r} a relation.
TEMPLATES = {
    "exist": "is there {a}?",
    "count": "how many {a} are there?",
    "colour": "what colour is the {a}?",
    "shape": "what shape is the {a}?",
    "size": "what size is the {a}?",
    "relation": "is the {a} {r} the {b}?",
    "more": "are there more {a} than {b}?",
    "same": "are the {a} and the {b} the same colour?",
    "hop": "what colour is the {noun} {r} the {a}?",
}
TYPES = tuple(TEMPLATES)
EMOJI_TYPES = ("exist", "count", "size", "relation", "more")  # those that need no colour words


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one of `TYPES` about `a` (and `b`, and a relation, where its type has them)."""

    type: str
    a: Phrase
    b: Phrase = NOTHING
    relation: str = ""

    def ask(self, world: World) -> str:
        """The question as text."""
        plural = self.type in ("count", "more")
        a = self.a.say(world, plural)
        if self.type == "exist":
            a = article(a)
        if self.type == "shape":
            a = a.removesuffix(world.noun) + "one"  # "the small red one"
        words = {"a": a, "b": self.b.say(world, plural), "r": self.relation, "noun": world.noun}
        return TEMPLATES[self.type].format(**words)


def answer_to(question: Question, scene: Scene) -> str | None:
    """The true answer, one of `ANSWERS`, or None when the question is ill-posed in this scene."""
    a, b, things = question.a, question.b, scene.things
    match question.type:
        case "exist":
            return _yes(any(map(a.fits, things)))
        case "count":
            number = sum(map(a.fits, things))
            return COUNTS[number] if number < len(COUNTS) else None
        case "more":
            return _yes(sum(map(a.fits, things)) > sum(map(b.fits, things)))
    first = a.only(scene)
    if first is None:
        return None
    match question.type:
        case "colour":
            return first.colour
        case "shape":
            return first.kind
        case "size":
            return first.size
        case "hop":
            sides = [(related(t, first, question.relation), t) for t in things if t is not first]
            hits = [thing.colour for side, thing in sides if side]
            clear = all(side is not None for side, _ in sides)
            return hits[0] if clear and len(hits) == 1 else None
    second = b.only(scene)
    if second is None or second is first:
        return None
    if question.type == "same":
        return _yes(first.colour == second.colour)
    return _yes(related(first, second, question.relation))


def parse_question(text: str, world: World) -> Question:
    """The question that a text asks; ValueError with the known forms when there is none."""
    plain = re.sub(r"\bone\?$", f"{world.noun}?", text.strip().lower())
    for kind, pattern in _question_patterns(world.name).items():
        if match := pattern.fullmatch(plain):
            found: Mapping[str, str] = match.groupdict()
            b = read_phrase(found["b"], world) if "b" in found else Phrase()
            return Question(kind, read_phrase(found["a"], world), b, found.get("r", ""))
    known = "; ".join(TEMPLATES[kind] for kind in types_of(world))
    raise ValueError(f"{text!r} is not a question of the {world.name} world: {known}")


def types_of(world: World) -> tuple[str, ...]:
    """The question types that a world can answer."""
    return TYPES if world.colours else EMOJI_TYPES


@cache
def _question_patterns(world_name: str) -> dict[str, re.Pattern[str]]:
    world = world_named(world_name)
    one, many = phrase_patterns(world_name)
    patterns = {}
    for kind in types_of(world):
        phrase = many if kind in ("count", "more") else one
        a = f"(?P<a>{phrase})"
        words = {
            "a": f"an? {a}" if kind == "exist" else a,
            "b": f"(?P<b>{phrase})",
            "r": f"(?P<r>{'|'.join(RELATIONS)})",
            "noun": world.noun,
        }
        patterns[kind] = re.compile(TEMPLATES[kind].replace("?", r"\?").format(**words))
    return patterns


def _yes(truth: bool | None) -> str | None:
    return None if truth is None else YES_NO[not truth]
