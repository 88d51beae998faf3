"""Two pictures at once: statements about a pair (NLVR2) and the binding test (Winoground).

A statement is about one fact of each picture (is there a red star? how many stars?), and both facts
are answers of `scene_vqa`, so its truth is exact. Every statement comes with four pairs of
pictures, two true and two false, so that its words alone say nothing. What one picture alone gives
away differs by type and is counted by `one_picture_leak`.
NLVR2: arXiv 1811.00491. Winoground: arXiv 2204.03162.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from torch.utils.data import Dataset

from minibeit3.data.sample import Sample
from minibeit3.data.scene_captions import checked_index, picture
from minibeit3.data.scene_questions import COUNTS, Question
from minibeit3.data.scene_splits import Rule, allowed_thing, rule_for
from minibeit3.data.scene_text import RELATIONS, Phrase, article, is_true
from minibeit3.data.scene_vqa import TRIES, draw_question, scene_for
from minibeit3.data.scenes import (
    SIZES,
    Scene,
    Thing,
    World,
    furnish,
    item_rng,
    pick,
    shuffled,
    to_dict,
    world_named,
)

# statement type -> type of the question that it asks of each picture
STATEMENTS = {
    "exactly one": "exist",
    "same number": "count",
    "both": "exist",
    "more": "count",
    "only left": "relation",
}
# The two types that leak nothing from one picture are asked most often.
STATEMENT_WEIGHTS = ("exactly one",) * 3 + ("same number",) * 3 + ("both", "more", "only left")


class SceneStatements(Dataset[Sample]):
    """`length` statements about two pictures; items 4i .. 4i + 3 share one, two of them true.

    split: "train", "val" or "test". size: picture side. world: "shapes" or "emoji".
    kinds: statement types, all equally often, so one that is named twice comes twice as often; by
    default `STATEMENT_WEIGHTS`.
    Items have image and image_b uint8 (3, H, W), texts (statement,), label 1 (true) or 0 and info:
    type, facts (the answer that decides, in the left and the right picture), group (of the four
    items with this statement), scene, scene_b, split.
    Raises ValueError for unknown names and a length below 1.
    """

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 64,
        world: str = "shapes",
        kinds: Sequence[str] | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"a dataset of {length} items is empty: ask for at least 1")
        if unknown := [kind for kind in kinds or () if kind not in STATEMENTS]:
            known = ", ".join(STATEMENTS)
            raise ValueError(f"statement type {unknown[0]!r} does not exist: choose from {known}")
        self.world = world_named(world)
        self.kinds = tuple(kinds or STATEMENT_WEIGHTS)
        self.rule = rule_for(self.world, split)
        self.split, self.length, self.size = split, length, size

    def __len__(self) -> int:
        return self.length

    def pose(self, index: int) -> tuple[str, str, bool, tuple[str, str], tuple[Scene, Scene]]:
        """(type, statement, truth, facts, scenes) of an item, not drawn."""
        index = checked_index(index, self.length)
        rng = item_rng(self.world.name, "statement", self.split, index // 4)
        kind = pick(rng, self.kinds)
        question = draw_question(rng, self.world, self.rule, (STATEMENTS[kind],))
        truth, facts = shuffled(rng, four_pairs(rng, kind))[index % 4]
        rng = item_rng(self.world.name, "statement", self.split, index // 4, index % 4)
        left, right = (scene_for(rng, self.world, self.rule, question, fact) for fact in facts)
        if self.world.styles != ("",):
            right = replace(right, style=left.style)
        return kind, state(kind, question, self.world), truth, facts, (left, right)

    def __getitem__(self, index: int) -> Sample:
        index = checked_index(index, self.length)
        kind, statement, truth, facts, (left, right) = self.pose(index)
        name = f"{self.world.name}/statement/{self.split}"
        return Sample(
            key=f"{name}/{index}",
            image=picture(left, self.size),
            image_b=picture(right, self.size),
            texts=(statement,),
            label=int(truth),
            info={
                "type": kind,
                "facts": facts,
                "group": f"{name}/{index // 4}",
                "scene": to_dict(left),
                "scene_b": to_dict(right),
                "split": self.split,
            },
        )


def four_pairs(rng: Random, kind: str) -> list[tuple[bool, tuple[str, str]]]:
    """Truth and (left, right) facts of the four items of a statement: two true, two false."""
    if kind == "exactly one":
        true, false = [("yes", "no"), ("no", "yes")], [("yes", "yes"), ("no", "no")]
    elif kind == "both":
        true, false = [("yes", "yes")] * 2, [("yes", "no"), ("no", "yes")]
    elif kind == "only left":
        true, false = [("yes", "no")] * 2, [("yes", "yes"), ("no", "no")]
    elif kind == "same number":
        c, d = shuffled(rng, COUNTS)[:2]
        true, false = [(c, c), (d, d)], [(c, d), (d, c)]
    else:  # "more": counts one apart, so that both pictures have to be counted
        steps = [(few, few + 1) for few in shuffled(rng, range(len(COUNTS) - 1))[:2]]
        false = [(COUNTS[few], COUNTS[many]) for few, many in steps]
        true = [(many, few) for few, many in false]
    return [(True, pair) for pair in true] + [(False, pair) for pair in false]


def state(kind: str, question: Question, world: World) -> str:
    """The statement's words."""
    one, many = question.a.say(world), question.a.say(world, plural=True)
    if kind == "only left":
        place = f"the {one} is {question.relation} the {question.b.say(world)}"
        return f"{place} only in the left image"
    return {
        "exactly one": f"exactly one image contains {article(one)}",
        "both": f"both images contain {article(one)}",
        "same number": f"the two images contain the same number of {many}",
        "more": f"the left image contains more {many} than the right image",
    }[kind]


def one_picture_leak(
    items: Iterable[tuple[str, bool, tuple[str, str]]],
) -> dict[str, tuple[float, float]]:
    """Best accuracy from the left picture alone and from the right alone, by statement type.

    items: (type, truth, facts) as `SceneStatements.pose` gives. Counted, not trained: the guesser
    knows the deciding fact of one picture and says the more frequent truth; 0.5 is no leak.
    """
    seen: defaultdict[str, list[Counter[tuple[str, bool]]]] = defaultdict(
        lambda: [Counter(), Counter()]
    )
    for kind, truth, facts in items:
        for side in (0, 1):
            seen[kind][side][facts[side], truth] += 1

    def best(table: Counter[tuple[str, bool]]) -> float:
        facts = {fact for fact, _ in table}
        return sum(max(table[f, True], table[f, False]) for f in facts) / table.total()

    return {kind: (best(left), best(right)) for kind, (left, right) in seen.items()}


# ---- binding: the same words, the same things, another meaning


class BindingPairs(Dataset[Sample]):
    """`length` pairs of pictures with two captions made of the same words.

    "a red star and a blue ring" against "a blue star and a red ring" (type "colour"), the same with
    sizes ("size"), and who is left of whom ("relation"); nothing else differs between the pictures.
    Items have image, image_b uint8 (3, H, W), texts (caption of image, caption of image_b) and
    info: type, scene, scene_b, split. Text, image and group score by chance: 1/4, 1/4, 1/6.
    Raises ValueError for unknown names and a length below 1.
    """

    def __init__(self, split: str, length: int, size: int = 64, world: str = "shapes") -> None:
        if length < 1:
            raise ValueError(f"a dataset of {length} items is empty: ask for at least 1")
        self.world = world_named(world)
        self.rule = rule_for(self.world, split)
        self.types = ("colour", "size", "relation") if self.world.colours else ("size", "relation")
        self.split, self.length, self.size = split, length, size

    def __len__(self) -> int:
        return self.length

    def pose(self, index: int) -> tuple[str, tuple[str, str], tuple[Scene, Scene]]:
        """(type, captions, scenes) of an item, not drawn."""
        index = checked_index(index, self.length)
        rng = item_rng(self.world.name, "binding", self.split, index)
        kind = pick(rng, self.types)
        for _ in range(TRIES):
            scene, other, captions = _binding(rng, self.world, self.rule, kind)
            truths = [is_true(caption, s) for s in (scene, other) for caption in captions]
            if truths == [True, False, False, True]:
                return kind, captions, (scene, other)
        raise ValueError(f"no binding pair of type {kind} found for item {index}")

    def __getitem__(self, index: int) -> Sample:
        index = checked_index(index, self.length)
        kind, captions, (scene, other) = self.pose(index)
        return Sample(
            key=f"{self.world.name}/binding/{self.split}/{index}",
            image=picture(scene, self.size),
            image_b=picture(other, self.size),
            texts=captions,
            info={
                "type": kind,
                "scene": to_dict(scene),
                "scene_b": to_dict(other),
                "split": self.split,
            },
        )


class SceneTwins(Dataset[Sample]):
    """The pictures of `BindingPairs` one by one, each with its own caption, for pretraining.

    Arguments as there; twice as many items. info: "other", the caption of the twin, beside "type",
    "scene" and "split".
    """

    def __init__(self, split: str, length: int, size: int = 64, world: str = "shapes") -> None:
        self.pairs = BindingPairs(split, length, size, world)

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        index = checked_index(index, len(self))
        kind, captions, scenes = self.pairs.pose(index // 2)
        own = index % 2
        return Sample(
            key=f"{self.pairs.world.name}/twin/{self.pairs.split}/{index}",
            image=picture(scenes[own], self.pairs.size),
            texts=(captions[own],),
            info={
                "type": kind,
                "other": captions[1 - own],
                "scene": to_dict(scenes[own]),
                "split": self.pairs.split,
            },
        )


def _binding(
    rng: Random, world: World, rule: Rule, kind: str
) -> tuple[Scene, Scene, tuple[str, str]]:
    """Two scenes and captions that probably bind apart; the caller checks that they do."""
    a, b = allowed_thing(rng, world, rule), allowed_thing(rng, world, rule)
    small, large = shuffled(rng, SIZES)
    if kind != "size":
        large = small  # otherwise the two would differ in more than the caption says
    a, b = replace(a, size=small), replace(b, size=large)
    extra = [allowed_thing(rng, world, rule) for _ in range(int(rng.random() * 3))]
    scene = furnish(rng, world, [a, b, *extra], rule.styles)

    def exchange(*names: str) -> Scene:
        """The scene after its things like a and like b have traded these attributes."""
        first, second = (_first_like(scene, thing) for thing in (a, b))
        traded = {
            first: replace(first, **{name: getattr(second, name) for name in names}),
            second: replace(second, **{name: getattr(first, name) for name in names}),
        }
        return replace(scene, things=tuple(traded.get(t, t) for t in scene.things))

    if kind == "relation":
        relation = pick(rng, tuple(RELATIONS))
        names = (Phrase("", a.colour, a.kind).say(world), Phrase("", b.colour, b.kind).say(world))
        told = tuple(f"the {x} is {relation} the {y}" for x, y in (names, names[::-1]))
        return scene, exchange("cx", "cy"), (told[0], told[1])

    def told_as(first: Thing, second: Thing) -> str:
        said = ((getattr(t, kind), t.kind) for t in (first, second))
        phrases = (Phrase(kind=noun, **{kind: word}) for word, noun in said)
        return " and ".join(article(phrase.say(world)) for phrase in phrases)

    turned = (replace(a, **{kind: getattr(b, kind)}), replace(b, **{kind: getattr(a, kind)}))
    # Sizes trade places with their things, so that the twin scene has no new overlap.
    names = ("kind", "colour") if kind == "size" else (kind,)
    return scene, exchange(*names), (told_as(a, b), told_as(*turned))


def _first_like(scene: Scene, thing: Thing) -> Thing:
    def look(t: Thing) -> tuple[str, str, str]:
        return t.kind, t.colour, t.size

    return next(t for t in scene.things if look(t) == look(thing))
