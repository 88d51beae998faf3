"""What an explorer shows, as plain data: states, and reducers that take a reader's gestures.

No widgets and no torch. The browser's module, the plain controls and the tests all go through
`moved`, so that a value out of range is refused in one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

State = TypeVar("State", "AttentionState", "MaskState")

METHODS = ("attention", "rollout", "relevance")
KINDS = ("block-wise", "random")
SHOWS = ("cover", "distance")


class Between(NamedTuple):
    """Numbers from low to high, both included; whole: True = integers only."""

    low: float
    high: float
    whole: bool = True


class Bits(NamedTuple):
    """A string of `length` zeros and ones; optional: True = the empty string too."""

    length: int
    optional: bool = False


Limits = Mapping[str, Between | Bits | Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class AttentionState:
    """layer: 1 is the first. head: 0 is the first, -1 = mean of all. query: the token that asks.

    keep: percent of the weight whose strongest tokens are drawn. region: -1 = none.
    """

    layer: int
    query: int
    head: int = -1
    method: str = "attention"
    keep: int = 100
    region: int = -1


@dataclass(frozen=True, kw_only=True)
class MaskState:
    """How the mask is drawn, and what the reader changed by hand.

    block: smallest rectangle, in patches. aspect: least height / width. brushed: bits of all
    patches, 1 = hidden, once someone painted; "" = as drawn. words: bits, 1 = hidden.
    """

    ratio: float
    block: int
    kind: str = "block-wise"
    show: str = "cover"
    aspect: float = 0.3
    seed: int = 0
    brushed: str = ""
    words: str = ""


DRAWN_BY = ("kind", "ratio", "block", "aspect", "seed")  # a change of these undoes the brush


def attention_limits(depth: int, heads: int, tokens: int, regions: int) -> Limits:
    """What an `AttentionState` may hold for a model and an input of these sizes."""
    return {
        "layer": Between(1, depth),
        "query": Between(0, tokens - 1),
        "head": Between(-1, heads - 1),
        "method": METHODS,
        "keep": Between(10, 100),
        "region": Between(-1, regions - 1),
    }


def mask_limits(grid: int, words: int, most_block: int) -> Limits:
    """What a `MaskState` may hold for grid x grid patches and a caption of `words`."""
    return {
        "kind": KINDS,
        "show": SHOWS,
        "ratio": Between(0, 0.9, whole=False),
        "block": Between(1, most_block),
        "aspect": Between(0.1, 1, whole=False),
        "seed": Between(0, 20),
        "brushed": Bits(grid * grid, optional=True),
        "words": Bits(words),
    }


def moved(state: State, event: Mapping[str, Any], limits: Limits) -> State:
    """The state after `event`, a part of its fields with new values.

    A change of what draws a mask gives up the brush, unless the event brings one.
    Raises ValueError that names the field, the value and what it may be.
    """
    for name, value in event.items():
        if name not in limits:
            raise ValueError(f"{name!r} is no setting: there are {', '.join(limits)}")
        if not _fits(value, limits[name]):
            raise ValueError(f"{name} is {value!r}: choose {_said(limits[name])}")
    after = replace(state, **event)
    if isinstance(after, MaskState) and "brushed" not in event:
        redrawn = any(getattr(after, name) != getattr(state, name) for name in DRAWN_BY)
        return replace(after, brushed="") if redrawn else after
    return after


def _fits(value: Any, limit: Between | Bits | Sequence[str]) -> bool:
    match limit:
        case Between(low, high, whole):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and low <= value <= high and (not whole or value == int(value))
        case Bits(length, optional):
            bits = isinstance(value, str) and set(value) <= {"0", "1"}
            return bits and (len(value) == length or (optional and not value))
    return value in limit


def _said(limit: Between | Bits | Sequence[str]) -> str:
    match limit:
        case Between(low, high, whole):
            return f"a {'whole ' * whole}number from {low} to {high}"
        case Bits(length, optional):
            return f"{length} zeros and ones{' or nothing' * optional}"
    return f"one of {', '.join(limit)}"
