"""Thin shells: controls, and one picture that `core` draws. No Output widget, no matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, Generic

import ipywidgets as W

from minibeit3.explore.core import Drawn
from minibeit3.explore.page import bundle, frames_page
from minibeit3.explore.state import Limits, State, moved

Options = list[tuple[str, Any]]


class Shell:
    """Controls above a picture; a saved notebook keeps the picture and its alt sentence."""

    def __init__(
        self, name: str, controls: Sequence[Any], draw: Callable[[], Drawn], watch: bool = True
    ) -> None:
        """watch: False = the explorer calls `refresh` itself."""
        self.name, self.draw, self.drawn, self.controls = name, draw, draw(), controls
        self.image = W.Image(value=self.drawn.png(), format="png")
        self.status = W.Label(value=self.drawn.alt)
        if watch:
            for control in controls:
                control.observe(self.refresh, names="value")
        row = W.HBox(list(controls), layout=W.Layout(flex_flow="row wrap"))
        self.view = W.VBox([row, self.image, self.status])

    def refresh(self, _: object = None) -> None:
        """Draw what the controls say now."""
        self.drawn = self.draw()
        self.image.value, self.status.value = self.drawn.png(), self.drawn.alt

    def sentence(self) -> str:
        """The explorer as plain text: its name and what it shows."""
        return f"{self.name}: {self.drawn.alt}"

    def bundle(self, view: W.Widget | None = None) -> dict[str, Any]:
        """What a notebook shows and saves; view: in place of the shell's own."""
        return bundle(view or self.view, self.sentence(), self.drawn)

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page with a picture for each of up to `most` settings of the controls.

        It needs neither kernel nor network. Where there are more settings, evenly spaced ones are
        kept, and always the present one.
        """
        present = [control.value for control in self.controls]
        options = thinned([settings(control) for control in self.controls], present, most)
        frames = {}
        try:
            for key in product(*(range(len(values)) for values in options)):
                for control, values, at in zip(self.controls, options, key, strict=True):
                    control.value = values[at][1]
                frames[key] = self.drawn
        finally:
            for control, value in zip(self.controls, present, strict=True):
                control.value = value
        start = [
            [value for _, value in values].index(now)
            for values, now in zip(options, present, strict=True)
        ]
        many = [at for at, values in enumerate(options) if len(values) > 1]
        names = [self.controls[at].description or f"setting {at + 1}" for at in many]
        texts = [[text for text, _ in options[at]] for at in many]
        shown = {tuple(key[at] for at in many): drawn for key, drawn in frames.items()}
        controls = list(zip(names, texts, strict=True))
        page = frames_page(self.name, controls, shown, [start[at] for at in many])
        Path(path).write_text(page, encoding="utf-8")


def settings(control: Any) -> Options:
    """Every value that a control can take, with its text, the present one included."""
    if isinstance(control, W.Checkbox | W.ToggleButton):
        return [("no", False), ("yes", True)]
    if isinstance(control, W.IntSlider | W.FloatSlider):
        low, step, most = (float(x) for x in (control.min, control.step or 1, control.max))
        values = {round(low + at * step, 6) for at in range(round((most - low) / step) + 1)}
        return [(f"{value:g}", value) for value in sorted(values | {control.value})]
    if isinstance(control, W.Dropdown | W.ToggleButtons):
        options: Any = control.options
        pairs = [(o, o) if isinstance(o, str) else tuple(o) for o in options]
        return [(str(text), value) for text, value in pairs]
    return [(str(control.value), control.value)]


def thinned(options: Sequence[Options], present: Sequence[Any], most: int) -> list[Options]:
    """Fewer of the longest, evenly spaced with the present one, until at most `most` in all."""
    counts = [len(values) for values in options]
    while prod(counts) > most:
        counts[counts.index(max(counts))] -= 1
    kept = []
    for values, now, count in zip(options, present, counts, strict=True):
        here = [value for _, value in values].index(now)
        even = [round(at * (len(values) - 1) / max(1, count - 1)) for at in range(count)]
        nearest = min(range(count), key=lambda at, e=even, h=here: abs(e[at] - h))
        even[nearest] = here
        kept.append([values[at] for at in sorted(set(even))])
    return kept


class Twin(Generic[State]):
    """One state behind the plain controls and the browser's view; each follows the other."""

    def __init__(
        self,
        state: State,
        limits: Limits,
        controls: Sequence[Any],
        read: Callable[[], Mapping[str, Any]],
        write: Callable[[State], None],
        changed: Callable[[], None],
    ) -> None:
        """read: what the controls say, by field; write: sets them; changed: called after both."""
        self.state: State = state
        self.limits, self.read, self.write, self.changed = limits, read, write, changed
        self.writing = False
        self.live: Any = None
        for control in controls:
            control.observe(self._controls_moved, names="value")

    def _controls_moved(self, _: object) -> None:
        if not self.writing:
            self.tell(self.read())
            if self.live is not None:
                self.live.view = self.view()

    def view(self) -> dict[str, Any]:
        """The state as the browser takes it."""
        return asdict(self.state)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take a gesture; ValueError when it asks for what cannot be."""
        self.state = moved(self.state, event, self.limits)
        self.writing = True
        try:
            self.write(self.state)
        finally:
            self.writing = False
        self.changed()
