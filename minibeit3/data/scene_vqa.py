"""Visual questions with balanced answers: question first, then its answer, then a scene for both.

Scenes drawn first give a question-only guesser 55% on such data (chance 35%). Here the answer is
uniform among those the question allows, whatever its words are, so that the words tell nothing.
Items 2i and 2i + 1 ask the same question about twin scenes, a minimal edit apart, with different
answers (after VQAv2, arXiv 1612.00837): a model is only right about a pair when it looks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from torch.utils.data import Dataset

from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import checked_index, picture
from minibeit3.data.scene_questions import COUNTS, YES_NO, Question, answer_to, types_of
from minibeit3.data.scene_splits import (
    HELD_PAIRS,
    Rule,
    allowed_thing,
    held_pair,
    rule_for,
)
from minibeit3.data.scene_text import RELATIONS, Phrase
from minibeit3.data.scenes import (
    SIZES,
    Scene,
    Thing,
    World,
    fits,
    furnish,
    item_rng,
    pick,
    place,
    shuffled,
    to_dict,
    world_named,
)

TRIES = 5000
ATTRIBUTES = ("size", "colour", "kind")


class SceneVQA(Dataset[Sample]):
    """`length` questions, each with its scene; the answer is uniform among `info["choices"]`.

    split, size, world, holdout: as for SceneCaptions. types: question types to ask, by default all
    that the split can ask. The tests of the holdouts "relation", "count", "hop" and "pair" ask only
    the held-out type (a "pair" is asked for its relation), and so do the controls, for a fair
    comparison, except that of "hop".
    most: things in a scene at most, or as many as an answer needs; None = as many as the split has.
    With few, there is less room for decoys and for large numbers.
    Items have image uint8 (3, H, W), texts (question,), answers {answer: 1.0} and info: type,
    choices (possible answers), twin (key of the item with the twin scene, None when the question
    has one possible answer), scene, split.
    Raises ValueError for unknown names and a length below 1.
    """

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 64,
        world: str = "shapes",
        holdout: str | None = None,
        types: Sequence[str] | None = None,
        most: int | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"a dataset of {length} items is empty: ask for at least 1")
        self.world = world_named(world)
        self.rule = rule_for(self.world, split, holdout).at_most(most)
        if holdout == "relation" and self.rule.held:
            # Both orders are shown, so that yes and no stay balanced: the questions are held out.
            self.rule = replace(self.rule, scene=lambda _: True)
        self.types = _types(self.world, self.rule, split, types)
        self.split, self.length, self.size = split, length, size
        few = "" if most is None else f"/{most}"
        self.name = f"{world}/vqa/{holdout or 'all'}/{'+'.join(types or ('all',))}{few}/{split}"

    def __len__(self) -> int:
        return self.length

    def pose(self, index: int) -> tuple[Question, str, Scene, tuple[str, ...]]:
        """(question, answer, scene, choices) of an item, not drawn; IndexError past the end."""
        index = checked_index(index, self.length)
        rng = item_rng(self.name, index // 2)
        question = draw_question(rng, self.world, self.rule, self.types)
        options = choices(question, self.world, self.rule)
        if len(options) == 1:  # a held-out answer has no twin
            single = item_rng(self.name, index, "single")
            scene = scene_for(single, self.world, self.rule, question, options[0])
            return question, options[0], scene, options
        answer, other = shuffled(rng, options)[:2]
        for _ in range(TRIES):
            scene = scene_for(rng, self.world, self.rule, question, answer)
            if twin := twin_of(rng, self.world, self.rule, question, scene, other):
                return (question, *((other, twin) if index % 2 else (answer, scene)), options)
        raise ValueError(f"no twin scenes found for {question} with answers {answer}, {other}")

    def __getitem__(self, index: int) -> Sample:
        index = checked_index(index, self.length)
        question, answer, scene, options = self.pose(index)
        return Sample(
            key=f"{self.name}/{index}",
            image=picture(scene, self.size),
            texts=(question.ask(self.world),),
            answers={answer: 1.0},
            info={
                "type": question.type,
                "choices": options,
                "twin": f"{self.name}/{index ^ 1}" if len(options) > 1 else None,
                "scene": to_dict(scene),
                "split": self.split,
            },
        )


# ---- the question


def draw_question(rng: Random, world: World, rule: Rule, types: Sequence[str]) -> Question:
    """A question of a uniformly drawn type that the rule lets be asked."""
    kind = pick(rng, types)
    while True:
        question = _any_question(rng, world, rule, kind)
        if _may_ask(question, rule) and choices(question, world, rule):
            return question


def choices(question: Question, world: World, rule: Rule) -> tuple[str, ...]:
    """The answers that are possible under the rule, all equally likely."""
    a = question.a
    match question.type:
        case "count" if rule.holdout == "count" and a.kind == "circle":
            return COUNTS[4:5] if rule.held else COUNTS[: min(4, rule.counts[1] + 1)]
        case "count":
            return COUNTS[: rule.counts[1] + 1]
        case "colour":
            return tuple(c for c in world.colours if rule.thing(Thing(a.kind, c, "small")))
        case "hop":
            return world.colours
        case "shape":
            return tuple(k for k in world.kinds if rule.thing(Thing(k, a.colour, "small")))
        case "size":
            return SIZES
    return YES_NO


def _any_question(rng: Random, world: World, rule: Rule, kind: str) -> Question:
    def phrase(*said: str) -> Phrase:
        thing = allowed_thing(rng, world, rule)
        return Phrase(**{name: getattr(thing, name) for name in said})

    def two(*said: str) -> tuple[Phrase, Phrase]:
        while (a := phrase(*said)) and (b := phrase(*said)):
            if getattr(a, said[0]) != getattr(b, said[0]):
                return a, b
        raise AssertionError("a phrase is never false")

    coloured = bool(world.colours)
    match kind:
        case "exist" if coloured:
            said = pick(rng, (("colour", "kind"), ("size", "kind"), ATTRIBUTES))
            return Question(kind, phrase(*said))
        case "exist":
            return Question(kind, phrase("size", "kind"))
        case "count" if coloured:
            return Question(kind, phrase(*pick(rng, (("kind",), ("colour",), ("colour", "kind")))))
        case "count":
            return Question(kind, phrase(*pick(rng, (("kind",), ("size", "kind")))))
        case "colour":
            return Question(kind, phrase(*pick(rng, (("kind",), ("size", "kind")))))
        case "shape":
            return Question(kind, phrase(*pick(rng, (("colour",), ("size", "colour")))))
        case "size":
            said = ("colour", "kind") if coloured and rng.random() < 0.5 else ("kind",)
            return Question(kind, phrase(*said))
        case "relation":
            said = ("kind", "colour") if coloured and rng.random() < 0.5 else ("kind",)
            return Question(kind, *two(*said), pick(rng, tuple(RELATIONS)))
        case "more":
            said = "colour" if coloured and rng.random() < 0.5 else "kind"
            return Question(kind, *two(said))
        case "same":
            return Question(kind, *two("kind"))
    return Question(kind, phrase("kind"), relation=pick(rng, tuple(RELATIONS)))


def _may_ask(question: Question, rule: Rule) -> bool:
    """False where a holdout makes the answer a foregone conclusion, or is about something else."""
    kinds = (question.a.kind, question.b.kind)
    if rule.holdout == "combo":
        # Where their colours never overlap, a triangle and a star are never the same colour.
        return question.type != "same" or set(kinds) != {"triangle", "star"}
    if rule.holdout == "relation" and question.type == "relation":
        level = question.relation in ("left of", "right of")
        return (level and (kinds in HELD_PAIRS or kinds[::-1] in HELD_PAIRS)) == rule.held
    if rule.holdout == "count" and rule.held:
        return question.a == Phrase(kind="circle")
    if rule.holdout == "pair":
        return held_pair(*kinds) == rule.held
    if rule.holdout == "any" and not rule.held:
        return not held_pair(*kinds)  # no such scene may be shown
    return True


def _types(world: World, rule: Rule, split: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The asked types, by default all that the split can ask; ValueError names a wrong one."""
    possible = types_of(world)
    default = possible
    if rule.holdout in ("relation", "count", "pair"):
        default = {"count": ("count",)}.get(rule.holdout, ("relation",))
        possible = default if rule.held else possible
        default = default if split in ("test", "control") else possible
    if rule.holdout == "hop":
        default = possible = tuple(t for t in possible if (t == "hop") == rule.held)
    for name in asked or ():
        if name not in possible:
            raise ValueError(
                f"question type {name!r} is not asked in the {world.name} world, split {split!r}, "
                f"holdout {rule.holdout}: choose from {', '.join(possible)}"
            )
    return tuple(asked or default)


# ---- a scene for a question and its answer


def scene_for(rng: Random, world: World, rule: Rule, question: Question, answer: str) -> Scene:
    """A random scene of the rule in which the question has this answer.

    Raises ValueError when none is found, for example for four things in a world of three.
    """
    for _ in range(TRIES):
        scene = furnish(rng, world, _cast(rng, world, rule, question, answer), rule.styles)
        if answer_to(question, scene) == answer and rule.scene(scene):
            return scene
    raise ValueError(f"found no scene where {question.ask(world)!r} has the answer {answer!r}")


def _cast(rng: Random, world: World, rule: Rule, question: Question, answer: str) -> list[Thing]:
    """The things of such a scene: those the answer needs, decoys, and others that fit no phrase.

    How many things there are never depends on the answer.
    """
    a, b = question.a, question.b
    few, most = rule.counts

    def like(phrase: Phrase, *avoid: Phrase) -> Thing:
        return _thing_like(rng, world, rule, phrase, avoid)

    need = min(2, most)
    match question.type:
        case "exist":
            # Everything asked for is there, but bound together only when the answer is yes.
            cast = [like(replace(a, **{name: ""}), a) for name in a.said()]
            need = min(len(cast) + 1, most)
            room = most - (answer == "yes")
            if len(cast) > room:
                cast = shuffled(rng, cast)[:room]
            if answer == "yes":
                cast.append(like(a))
        case "count":
            need = min(len(COUNTS) - 1, most)
            cast = [like(a) for _ in range(COUNTS.index(answer))]
        case "more":
            number = int(rng.random() * ((most + 1) // 2))
            need = 2 * number + 1
            extra_a, extra_b = (1, 0) if answer == "yes" else pick(rng, ((0, 0), (0, 1)))
            cast = [like(a) for _ in range(number + extra_a)]
            cast += [like(b) for _ in range(number + extra_b)]
        case "same":
            first, second = (
                [c for c in world.colours if rule.thing(Thing(kind, c, "small"))]
                for kind in (a.kind, b.kind)
            )
            colour = pick(rng, [c for c in first if c in second])
            others = [c for c in second if (c == colour) == (answer == "yes")]
            cast = [like(replace(a, colour=colour)), like(replace(b, colour=pick(rng, others)))]
        case "relation":
            cast = [like(a), like(b)]
        case "hop":
            cast = [like(a), like(Phrase(colour=answer), a)]
            most = max(few, min(4, most))  # in a crowd, nothing is alone on one side
        case attribute:
            name = "kind" if attribute == "shape" else attribute
            cast = [like(replace(a, **{name: answer}))]
    few = max(few, need)
    total = few + int(rng.random() * (most - few + 1))
    avoid = tuple(phrase for phrase in (a, b) if phrase != Phrase())
    return cast + [like(Phrase(), *avoid) for _ in range(total - len(cast))]


def _thing_like(
    rng: Random, world: World, rule: Rule, phrase: Phrase, avoid: Sequence[Phrase]
) -> Thing:
    said = {name: getattr(phrase, name) for name in phrase.said()}
    for _ in range(TRIES):
        thing = replace(allowed_thing(rng, world, rule), **said)
        if rule.thing(thing) and not any(other.fits(thing) for other in avoid):
            return thing
    raise ValueError(f"no thing fits {phrase} under holdout {rule.holdout!r}")


# ---- the twin of a scene


def twin_of(
    rng: Random, world: World, rule: Rule, question: Question, scene: Scene, answer: str
) -> Scene | None:
    """The scene with as few changes as give it the other answer; None when no edit works.

    One attribute of one thing changes, or one thing moves, or two swap places; a count changes by
    one thing at a time.
    """
    edits = _moves if question.type == "relation" else _changes
    for _ in COUNTS:
        now = answer_to(question, scene)
        for edited in edits(rng, world, rule, question, scene, answer):
            then = answer_to(question, edited)
            if then == answer:
                return edited if rule.scene(edited) else None
            if question.type == "count" and then in COUNTS and now in COUNTS:
                goal = COUNTS.index(answer)
                if abs(COUNTS.index(then) - goal) < abs(COUNTS.index(now) - goal):
                    scene = edited
                    break
        else:
            return None
    return None


def _changes(
    rng: Random, world: World, rule: Rule, question: Question, scene: Scene, answer: str
) -> Iterator[Scene]:
    """The scene with one attribute of one thing changed, in random order."""
    match question.type:
        case "colour" | "hop" | "same":
            names = ("colour",)
        case "shape":
            names = ("kind",)
        case "size":
            names = ("size",)
        case _:
            names = tuple({*question.a.said(), *question.b.said()})
    for i, thing in shuffled(rng, list(enumerate(scene.things))):
        for name in shuffled(rng, sorted(names)):
            words = {"size": SIZES, "colour": world.colours, "kind": world.kinds}[name]
            told = (getattr(question.a, name), getattr(question.b, name), answer)
            present = (getattr(other, name) for other in scene.things)
            options = [word for word in dict.fromkeys((*told, *present)) if word in words]
            for word in shuffled(rng, [*options, pick(rng, words)]):
                changed = replace(thing, **{name: word})
                if world.colours and not rule.thing(changed):
                    changed = replace(changed, colour=pick(rng, world.colours))
                things = (*scene.things[:i], changed, *scene.things[i + 1 :])
                if rule.thing(changed) and (name != "size" or fits(world, things)):
                    yield replace(scene, things=things)


def _moves(
    rng: Random, world: World, rule: Rule, question: Question, scene: Scene, answer: str
) -> Iterator[Scene]:
    """The scene with the two named things swapped, or one of them moved elsewhere."""
    a, b = question.a.only(scene), question.b.only(scene)
    if a is None or b is None:
        return
    places = [{a: (b.cx, b.cy), b: (a.cx, a.cy)}]
    for thing in shuffled(rng, [a, b] * 20):
        spot = place(rng, world, (thing,))[0]
        places.append({thing: (spot.cx, spot.cy)})
    for moved in places:
        things = tuple(
            replace(t, cx=moved[t][0], cy=moved[t][1]) if t in moved else t for t in scene.things
        )
        if fits(world, things):
            yield replace(scene, things=things)
