"""AnswerExplorer: change one thing of a scene or the question, and watch the answer change."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import ipywidgets as W
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minibeit3.data.images import to_model
from minibeit3.data.scene_captions import picture as scene_image
from minibeit3.data.scene_questions import answer_to, parse_question
from minibeit3.data.scenes import SIZES, Scene, Thing, boxes, fits, world_named
from minibeit3.explore.core import OUTLINE, Drawn, Picture, beside
from minibeit3.explore.own import Given, Own, opened, squared
from minibeit3.explore.rows import Row, below, rows_picture, titled
from minibeit3.explore.widgets import Shell
from minibeit3.modes import ClozeAnswerer, VisualQuestionAnswerer
from minibeit3.text_tokenizer import TextTokenizer

SIDE = 256


def true_answer(question: str, scene: Scene) -> str | None:
    """What the scene says; None for questions outside its grammar and ill-posed ones."""
    try:
        return answer_to(parse_question(question, world_named(scene.world)), scene)
    except ValueError:
        return None


def edited(scene: Scene, index: int, thing: Thing) -> Scene | None:
    """The scene with one thing changed; None where it would overlap or leave the frame."""
    things = (*scene.things[:index], thing, *scene.things[index + 1 :])
    return replace(scene, things=things) if fits(world_named(scene.world), things) else None


def outlined(scene: Scene, index: int) -> Picture:
    """The drawn scene with a box around one thing."""
    picture = Image.fromarray(squared(scene_image(scene, SIDE), SIDE))
    x0, y0, x1, y1 = boxes(scene, SIDE)[index].tolist()
    box = (max(0, x0 - 5), max(0, y0 - 5), min(SIDE - 1, x1 + 4), min(SIDE - 1, y1 + 4))
    ImageDraw.Draw(picture).rectangle(box, outline=OUTLINE, width=3)
    return np.asarray(picture)


class AnswerExplorer:
    """A scene one can edit, a question, the five likeliest answers now and before the edit."""

    def __init__(
        self,
        model: VisualQuestionAnswerer | ClozeAnswerer,
        answers: Sequence[str],
        tokenizer: TextTokenizer,
        scene: Scene,
        questions: Sequence[str],
        one_right: bool = True,
    ) -> None:
        """answers: text of each logit. questions: to choose from, the first is shown. one_right:
        True = trained with one right answer (the lab's recipes), so that all share a probability
        of one; False = each answer judged by itself (the released model).

        Raises ValueError for another number of answers, no question, or a scene without things.
        """
        if len(answers) != model.settings["answers"]:
            number = model.settings["answers"]
            raise ValueError(f"{len(answers)} answers for a model of {number}: give its own list")
        if not questions or not scene.things:
            raise ValueError("give at least one question and a scene with one thing")
        self.model, self.answers, self.tokenizer = model.eval(), list(answers), tokenizer
        self.one_right = one_right
        self.scene, self.image, world = scene, None, world_named(scene.world)
        self.question = W.Dropdown(options=list(questions), description="question")
        self.question.layout.width = "420px"
        things = [(str(i + 1), i) for i in range(len(scene.things))]
        self.thing = W.Dropdown(options=things, description="thing")
        self.kind = W.Dropdown(options=world.kinds, description="shape")
        self.colour = W.Dropdown(options=world.colours or ("",), description="colour")
        self.size = W.Dropdown(options=SIZES, description="size")
        self.x = W.FloatSlider(min=0, max=1, step=0.01, description="x")
        self.y = W.FloatSlider(min=0, max=1, step=0.01, description="y")
        self.keep = W.Button(description="keep this change")
        self.keep.on_click(self._kept)
        self.changing = False
        self._follow()
        changes = [self.kind, self.colour, self.size, self.x, self.y]
        controls = [self.question, self.thing, *changes]
        self.shell = Shell("AnswerExplorer", controls, self.draw, watch=False)
        self.thing.observe(self._follow, names="value")
        for control in controls:
            control.observe(self._refresh, names="value")
        own = Own(self.use, text="question")
        self.view = W.VBox([self.shell.view, self.keep, own.view])

    def use(self, image: Given | None = None, text: str | None = None) -> None:
        """Ask about one's own picture (then no truth is known), or one's own question."""
        pixels = opened(image)
        if pixels is not None:
            self.image = pixels
        if text is not None:
            self.question.options = [*self.question.options, text]
            self.question.value = text
        self.shell.refresh()

    def _follow(self, _: object = None) -> None:
        """Let the controls say what the chosen thing is."""
        chosen = self.scene.things[int(self.thing.value or 0)]
        self.changing = True
        self.kind.value, self.colour.value, self.size.value = (
            chosen.kind,
            chosen.colour,
            chosen.size,
        )
        self.x.value, self.y.value = chosen.cx, chosen.cy
        self.changing = False

    def _refresh(self, _: object) -> None:
        if not self.changing:
            self.shell.refresh()

    def _kept(self, _: object = None) -> None:
        """From here on compare with the scene as it is now."""
        self.scene, self.image = self.now() or self.scene, None
        self.shell.refresh()

    def now(self) -> Scene | None:
        """The scene with the present change; None where the thing does not fit there."""
        index = int(self.thing.value or 0)
        old = self.scene.things[index]
        kind, colour, size = (str(c.value) for c in (self.kind, self.colour, self.size))
        new = replace(old, kind=kind, colour=colour, size=size, cx=self.x.value, cy=self.y.value)
        return edited(self.scene, index, new)

    @torch.no_grad()
    def chances(self, image: Tensor) -> list[tuple[str, float]]:
        """Answers with their probability for uint8 (3, H, W), the likeliest first."""
        c = self.model.backbone.config
        text = self.tokenizer.batch([str(self.question.value)], c.max_text_length)
        logits = self.model(to_model(image[None], c.image_size), *text)[0]
        likely = logits.softmax(dim=0) if self.one_right else logits.sigmoid()
        best = likely.topk(min(5, len(self.answers)))
        names = [self.answers[i] for i in best.indices.tolist()]
        return list(zip(names, best.values.tolist(), strict=True))

    def draw(self) -> Drawn:
        """Scene and answers now, and those before the change; the sentence says both."""
        if self.image is not None:
            rows = [_rows("own picture", self.chances(self.image), None)]
            return _shown(squared(self.image, SIDE), str(self.question.value), rows)
        after, index = self.now(), int(self.thing.value or 0)
        note = "" if after is not None else " The thing does not fit there: nothing changed."
        after, size = after or self.scene, self.model.backbone.config.image_size
        rows = [
            _rows(name, self.chances(scene_image(scene, size)), self.true(scene))
            for name, scene in (("now", after), ("before", self.scene))
        ]
        shown = _shown(outlined(after, index), str(self.question.value), rows)
        return Drawn(shown.picture, shown.alt + note)

    def true(self, scene: Scene) -> str:
        """The true answer to the present question in words, also where there is none."""
        return true_answer(str(self.question.value), scene) or "no single answer"

    def __repr__(self) -> str:
        return self.shell.sentence()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return self.shell.bundle(self.view)

    def export_html(self, path: str | PathLike[str], most: int = 150) -> None:
        """One page for readers without a kernel (see `Shell.export_html`)."""
        self.shell.export_html(path, most)


def _rows(name: str, chances: Sequence[tuple[str, float]], truth: str | None) -> Drawn:
    rows = [
        Row(answer, p, f"{100 * p:.1f}%{' true' * (answer == truth)}", answer == truth)
        for answer, p in chances
    ]
    title = name if truth is None else f"{name}, truth: {truth}"
    answer, p = chances[0]
    verdict = "" if truth is None else ", right" if answer == truth else f", truth {truth}"
    alt = f"{name}: {answer} {100 * p:.0f}%{verdict}"
    return Drawn(titled(title, rows_picture(rows, 360, 110)), alt)


def _shown(picture: Picture, question: str, rows: Sequence[Drawn]) -> Drawn:
    right = below([row.picture for row in rows])
    sides = beside([Drawn(picture, ""), Drawn(right, "")]).picture
    alt = f"'{question}' {'; '.join(row.alt for row in rows)}."
    return Drawn(titled(question, sides), alt)
