"""How well hidden caption words can be guessed at best, with and without the picture.

With the picture the posterior is exact: every caption that can be said about the scene, with its
probability. Without it, all captions of one pattern ("the C0 K0 is left of the K1") are equally
likely: colours are exchangeable, and so are kinds and the four relations, because scenes are as
likely as their mirrored and turned copies. Only the frequencies of the patterns are estimated, from
`PATTERN_SCENES` scenes whose own caption probabilities are exact.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from random import Random
from typing import NamedTuple

from minibeit3.data.scene_splits import random_scene, rule_for
from minibeit3.data.scene_text import RELATIONS, caption_distribution
from minibeit3.data.scenes import SHAPES, Scene, item_rng

HIDDEN = "[mask]"
PATTERN_SCENES = 8000
POOLS = {"colour": SHAPES.colours, "kind": SHAPES.kinds}
ANY_RELATION = re.compile(f" is ({'|'.join(RELATIONS)}) the ")
SINGULARS = {plural: kind for kind, plural in SHAPES.plurals.items()}


class Slot(NamedTuple):
    """A place of a pattern for any word of a pool; equal numbers stand for equal words."""

    pool: str
    number: int
    plural: bool = False

    def word(self, value: str) -> str:
        """The value as it is written in this place."""
        return SHAPES.plurals[value] if self.plural else value


Pattern = tuple[str | Slot, ...]
Posterior = list[dict[str, float]]


def word_posterior(caption: str, scene: Scene | None = None) -> Posterior:
    """Probability of every word at each hidden place, given the visible words of a caption.

    caption: a caption of the generator with the hidden words written "[mask]". scene: what the
    picture shows, of any world; None: nothing is seen (prior of the shapes world, all splits).
    Returns one dict per hidden place; each sums to 1, and its largest value is the accuracy of the
    best guess there. Raises ValueError when no caption of the generator fits the visible words.
    """
    words = caption.split()
    hidden = [place for place, word in enumerate(words) if word == HIDDEN]
    found = _blind(words, hidden) if scene is None else _seen(words, hidden, scene)
    total = sum(found[0].values()) if hidden else 1.0
    if total == 0:
        told = "of this scene" if scene else "of the shapes world"
        raise ValueError(f"{caption!r} fits no caption {told} that the generator can say")
    return [{word: weight / total for word, weight in place.items()} for place in found]


def masked_word_ceiling(
    items: Iterable[tuple[Scene, str]], ratio: float, rng: Random
) -> tuple[float, float]:
    """Best possible accuracy on hidden words (with the picture, without), expected, over items.

    items: (scene, caption) of the shapes world. ratio: chance of a word to be hidden. Every place
    is guessed on its own from the visible words, as a masked language model does.
    """
    seen: list[float] = []
    blind: list[float] = []
    for scene, caption in items:
        words = [HIDDEN if rng.random() < ratio else word for word in caption.split()]
        for known, best in ((scene, seen), (None, blind)):
            best += [max(place.values()) for place in word_posterior(" ".join(words), known)]
    if not seen:
        raise ValueError(f"no word was hidden at ratio {ratio}: pass more items or a higher ratio")
    return sum(seen) / len(seen), sum(blind) / len(blind)


def _seen(words: list[str], hidden: list[int], scene: Scene) -> Posterior:
    found: Posterior = [{} for _ in hidden]
    for caption, chance in caption_distribution(scene).items():
        said = caption.split()
        if len(said) != len(words) or any(
            word not in (HIDDEN, true) for word, true in zip(words, said, strict=True)
        ):
            continue
        for place, chances in zip(hidden, found, strict=True):
            chances[said[place]] = chances.get(said[place], 0.0) + chance
    return found


def _blind(words: list[str], hidden: list[int]) -> Posterior:
    found = [defaultdict[str, float](float) for _ in hidden]
    for pattern, weight in _patterns().items():
        bound = _bind(pattern, words)
        if bound is None:
            continue
        # A pattern's share of captions that agree with the visible words depends on those words
        # only, not on the pattern, so it cancels when the weights are normalised.
        shown = {(pool, value) for (pool, _), value in bound.items()}
        unused = {
            pool: [value for value in values if (pool, value) not in shown]
            for pool, values in POOLS.items()
        }
        for place, chances in zip(hidden, found, strict=True):
            token = pattern[place]
            if isinstance(token, str):
                chances[token] += weight
            elif token[:2] in bound:
                chances[token.word(bound[token[:2]])] += weight
            else:
                for value in unused[token.pool]:
                    chances[token.word(value)] += weight / len(unused[token.pool])
    return [dict(chances) for chances in found]


def _bind(pattern: Pattern, words: list[str]) -> dict[tuple[str, int], str] | None:
    """Slot -> its value as far as the visible words show it; None when they contradict."""
    if len(pattern) != len(words):
        return None
    bound: dict[tuple[str, int], str] = {}
    for token, word in zip(pattern, words, strict=True):
        if word == HIDDEN:
            continue
        if isinstance(token, str):
            if token != word:
                return None
            continue
        value = SINGULARS.get(word, "") if token.plural else word
        if value not in POOLS[token.pool] or bound.setdefault(token[:2], value) != value:
            return None
    distinct = {(pool, value) for (pool, _), value in bound.items()}
    return bound if len(distinct) == len(bound) else None


@cache
def _patterns() -> dict[Pattern, float]:
    """Probability of every pattern that occurs, summed over its captions."""
    told = defaultdict[Pattern, float](float)
    rule = rule_for(SHAPES, "train")
    for index in range(PATTERN_SCENES):
        scene = random_scene(item_rng("patterns", index), SHAPES, rule)
        for caption, chance in caption_distribution(scene).items():
            told[_pattern(ANY_RELATION.sub(" is ? the ", caption))] += chance / PATTERN_SCENES
    chances: dict[Pattern, float] = {}
    for pattern, chance in told.items():
        if "?" not in pattern:
            chances[pattern] = chance
            continue
        cut = pattern.index("?")
        for relation in RELATIONS:
            turned = (*pattern[:cut], *relation.split(), *pattern[cut + 1 :])
            chances[turned] = chance / len(RELATIONS)
    return chances


def _pattern(caption: str) -> Pattern:
    seen: dict[str, list[str]] = {pool: [] for pool in POOLS}
    tokens: list[str | Slot] = []
    for word in caption.split():
        value = SINGULARS.get(word, word)
        pool = next((pool for pool, values in POOLS.items() if value in values), None)
        if pool is None:
            tokens.append(word)
            continue
        if value not in seen[pool]:
            seen[pool].append(value)
        tokens.append(Slot(pool, seen[pool].index(value), word != value))
    return tuple(tokens)
