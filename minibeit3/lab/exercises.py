"""Exercises: a check that tries the learner's own object, hints in steps, and a way to go on."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from html import escape as esc
from importlib import import_module
from pathlib import Path
from typing import Any

from minibeit3.lab.progress import note, points, private_check, records


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One task. check: raises AssertionError with the likely mistake, on fresh sizes and seeds.

    difficulty: 1 (follow) to 3 (invent). minutes: for a first-time reader. hints: from a nudge to
    nearly the answer. reference: what `use_reference` hands out.
    """

    name: str
    difficulty: int
    minutes: int
    check: Callable[[Any], None]
    hints: tuple[str, ...]
    reference: Any


@dataclass(frozen=True)
class Verdict:
    """What a check found; shown as one line."""

    name: str
    right: bool
    message: str

    def __repr__(self) -> str:
        return f"{self.name}: {'right' if self.right else 'not yet'}. {self.message}"

    def _repr_html_(self) -> str:
        mark = "✔" if self.right else "✘"
        return f"<p>{mark} <b>{esc(self.name)}</b>: {esc(self.message)}</p>"


_registry: dict[str, Exercise] = {}
_hints_given: dict[str, int] = {}


def register(exercise: Exercise) -> Exercise:
    """Add an exercise; its name must be new."""
    if exercise.name in _registry:
        raise ValueError(f"there is an exercise {exercise.name!r} already")
    _registry[exercise.name] = exercise
    return exercise


def exercises() -> dict[str, Exercise]:
    """All exercises by name."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("notebook_"):
            import_module(f"minibeit3.lab.{module.name}")  # importing registers
    return _registry


def find(name: str) -> Exercise:
    """The exercise `name`; ValueError lists the names there are."""
    if name not in exercises():
        raise ValueError(f"no exercise {name!r}: there are {', '.join(_registry)}")
    return _registry[name]


def check(name: str, answer: Any) -> Verdict:
    """Try the learner's object and note the result. Whatever it does wrong, the notebook goes on.

    Handing in the reference earns nothing.
    """
    exercise, private = find(name), private_check(name)
    if answer is Ellipsis or answer is None:
        return Verdict(name, False, "Nothing to check yet: replace the ... first.")
    verdict = _tried(exercise, private, answer)
    note(name, right=verdict.right and answer is not exercise.reference)
    return verdict


def _tried(exercise: Exercise, private: Callable[[Any], None] | None, answer: Any) -> Verdict:
    name = exercise.name
    try:
        exercise.check(answer)
        if private is not None:
            private(answer)
    except AssertionError as mistake:
        return Verdict(name, False, str(mistake))
    except Exception as error:  # the learner's code may raise anything: show it, do not stop
        return Verdict(name, False, f"It raised {type(error).__name__}: {error}")
    return Verdict(name, True, "It holds for fresh sizes and seeds.")


def hint(name: str) -> str:
    """The next hint of an exercise; the last one again when all were given."""
    hints = find(name).hints
    at = min(_hints_given.get(name, 0), len(hints) - 1)
    _hints_given[name] = at + 1
    note(name, hint=True)
    return f"Hint {at + 1} of {len(hints)}: {hints[at]}"


def use_reference(name: str) -> Any:
    """A right answer, for those who want to read on first."""
    return find(name).reference


def score() -> str:
    """How many points the learner has, and for what; see `progress.points`."""
    found = records()
    reached, possible = points(found, {name: e.difficulty for name, e in exercises().items()})
    right = sorted(name for name, record in found.items() if record.right)
    return f"{reached} of {possible} points; right: {', '.join(right) or 'none yet'}"
