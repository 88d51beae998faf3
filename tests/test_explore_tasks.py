"""Explorers of the tasks: what they show is what the models and the results files say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_comm import Sent, sent

from minibeit3 import BEiT3Config, build_backbone
from minibeit3.data.images import to_model
from minibeit3.data.scene_captions import SceneCaptions
from minibeit3.data.scene_questions import ANSWERS
from minibeit3.data.scenes import Scene, Thing
from minibeit3.explore import (
    AblationExplorer,
    AnswerExplorer,
    CaptionExplorer,
    CodebookExplorer,
    RetrievalExplorer,
    RoutingExplorer,
    rows,
)
from minibeit3.explore.answering import edited, true_answer
from minibeit3.explore.core import to_png
from minibeit3.explore.retrieval import WAYS, place, recalls
from minibeit3.explore.steps import decoded, followed
from minibeit3.explore.widgets import settings, thinned
from minibeit3.modes import ImageCaptioner, ImageTextRetriever, VisualQuestionAnswerer
from minibeit3.text_tokenizer import TextTokenizer

__all__ = ["sent"]  # the fixture

TOKENIZER = TextTokenizer.lab()
NANO = BEiT3Config(
    depth=2,
    width=16,
    ffn_width=32,
    heads=2,
    fusion_layers=1,
    image_size=32,
    patch_size=8,
    max_text_length=32,
    vocab_size=TOKENIZER.vocab_size,
    visual_vocab_size=16,
)
SAMPLES = [SceneCaptions("test", 8, 32)[i] for i in range(6)]
PICTURES = torch.stack([s.image for s in SAMPLES if s.image is not None])
TEXTS = [s.texts[0] for s in SAMPLES]
SCENE = Scene(
    "shapes",
    "white",
    (Thing("circle", "red", "large", 0.25, 0.25), Thing("star", "blue", "small", 0.75, 0.75)),
)


def model(kind: Any, *more: Any, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    made = kind(build_backbone(NANO, g), *more, generator=g)
    for p in made.parameters():  # fresh models say the same of everything
        p.data += 0.2 * torch.randn(p.shape, generator=g)
    return made.eval()


def retrieval() -> RetrievalExplorer:
    return RetrievalExplorer(model(ImageTextRetriever), PICTURES, TEXTS, TOKENIZER)


def answering() -> AnswerExplorer:
    questions = ["what colour is the circle?", "how many stars are there?", "is it art?"]
    return AnswerExplorer(
        model(VisualQuestionAnswerer, len(ANSWERS)), ANSWERS, TOKENIZER, SCENE, questions
    )


def captioning() -> CaptionExplorer:
    return CaptionExplorer(model(ImageCaptioner), TOKENIZER, PICTURES[0], max_length=8)


def ablation() -> AblationExplorer:
    study = {"runs": {"a": {"mean": 1.0, "sd": 0.1}, "b": {"mean": 0.5, "sd": 0.1}}}
    study["other"] = {"a": {"mean": 2.0, "sd": 0.1}}
    return AblationExplorer({"first": study, "second": {"x": 1, "y": {"value": 3}, "z": 2}})


EXPLORERS = [retrieval, answering, captioning, ablation]


@pytest.mark.parametrize("make", EXPLORERS)
def test_every_setting_of_every_control_is_drawn_and_said(make: Any, sent: Sent) -> None:
    explorer = make()
    shell = explorer.shell
    for control in shell.controls:
        seen, start = set(), control.value
        for _, value in thinned([settings(control)], [control.value], 6)[0]:
            control.value = value
            assert shell.status.value == shell.drawn.alt in repr(explorer)
            seen.add(bytes(shell.image.value) + shell.drawn.alt.encode())
        control.value = start
        if control.description not in ("length penalty", "picture"):  # no effect from the start
            assert len(seen) > 1, control.description
    assert any("value" in content.get("state", {}) for content, _ in sent)
    bundle = explorer._repr_mimebundle_()
    assert {"image/png", "text/html", "text/plain"} < set(bundle)
    assert "0x" not in bundle["text/plain"]


@pytest.mark.parametrize("make", EXPLORERS)
def test_an_exported_page_has_a_picture_per_setting_and_leaves_the_explorer_as_it_was(
    make: Any, tmp_path: Path
) -> None:
    explorer = make()
    before = repr(explorer)
    explorer.export_html(tmp_path / "page.html", most=6)
    assert repr(explorer) == before
    page = (tmp_path / "page.html").read_text()
    line = next(line for line in page.splitlines() if line.startswith("const FRAMES = "))
    frames = json.loads(line.removeprefix("const FRAMES = ").rstrip(";"))
    total = np.prod([len(control["options"]) for control in frames["controls"]])
    assert len(frames["frames"]) == total <= 6
    start = ",".join(map(str, frames["start"]))
    assert frames["frames"][start][1] == explorer.shell.drawn.alt


def test_thinned_settings_keep_the_ends_and_the_present_one() -> None:
    options = [[(str(i), i) for i in range(10)], [(str(i), i) for i in range(7)]]
    kept = thinned(options, [5, 6], 12)
    assert np.prod([len(values) for values in kept]) <= 12
    assert ("5", 5) in kept[0] and ("6", 6) in kept[1] and ("0", 0) in kept[1]
    assert thinned(options, [5, 6], 70) == options


# ---- retrieval


def test_ranks_and_recalls_are_those_of_the_cosines() -> None:
    likeness = np.array([[0.1, 0.9, 0.5], [0.2, 0.1, 0.3], [0.5, 0.5, 0.5]])
    assert [place(likeness[0], c) for c in range(3)] == [3, 1, 2]
    assert place(likeness[2], 1) == 2
    assert recalls(likeness, [1, 1, None]) == {1: 0.5, 5: 1.0, 10: 1.0}


def test_the_first_picture_found_is_the_models_and_its_place_is_told() -> None:
    found = retrieval()
    with torch.no_grad():
        likeness = found.model(to_model(PICTURES, 32), *TOKENIZER.batch(TEXTS, 32)).T.numpy()
    for text in range(6):
        found.text.value = text
        best, rank = likeness[text].argmax() + 1, place(likeness[text], text)
        assert f"The text {text + 1} finds picture {best} first" in repr(found)
        assert f"has place {rank} of 6" in repr(found)
    found.way.value = WAYS[1]
    for picture in range(6):
        found.picture.value = picture + 1
        assert f"has place {place(likeness[:, picture], picture)} of 6" in repr(found)


def test_own_picture_and_text_are_searched_without_a_truth() -> None:
    found = retrieval()
    found.use(text="a cat on a hat")
    assert "The text 7 finds picture" in repr(found) and "own partner" not in repr(found)
    found.use(image=to_png(np.full((9, 9, 3), 50, np.uint8)))
    assert "The picture 7 finds '" in repr(found) and "own partner" not in repr(found)
    with pytest.raises(ValueError, match="6 pictures and 5 texts"):
        RetrievalExplorer(found.model, PICTURES, TEXTS[1:], TOKENIZER)


# ---- answers


def test_an_edit_changes_the_scene_only_where_it_fits_and_the_truth_follows() -> None:
    explorer = answering()
    assert "truth red" in repr(explorer) or "right" in repr(explorer)
    explorer.colour.value = "green"
    now = explorer.now()
    assert now is not None and now.things[0].colour == "green" and now.things[1] == SCENE.things[1]
    assert explorer.true(now) == "green" and explorer.true(explorer.scene) == "red"
    explorer.x.value, explorer.y.value = 0.75, 0.75
    assert explorer.now() is None and "does not fit" in repr(explorer)
    assert edited(SCENE, 0, Thing("circle", "red", "large", 0.0, 0.5)) is None
    explorer.thing.value = 1
    assert explorer.colour.value == "blue" and explorer.now() == SCENE
    assert true_answer("is it art?", SCENE) is None


def test_the_answers_shown_are_the_models_likeliest() -> None:
    explorer = answering()
    with torch.no_grad():
        text = TOKENIZER.batch(["what colour is the circle?"], 32)
        logits = explorer.model(to_model(PICTURES[:1], 32), *text)[0]
    for one_right, likely in ((True, logits.softmax(dim=0)), (False, logits.sigmoid())):
        explorer.one_right = one_right
        found = explorer.chances(PICTURES[0])
        assert [name for name, _ in found] == [ANSWERS[i] for i in likely.topk(5).indices]
        assert [p for _, p in found] == pytest.approx(likely.topk(5).values.tolist())


def test_a_kept_change_is_the_new_comparison_and_own_inputs_have_no_truth() -> None:
    explorer = answering()
    explorer.colour.value = "green"
    explorer.keep.click()
    assert explorer.scene.things[0].colour == "green"
    explorer.use(text="what shape is the red one?")
    assert explorer.question.value == "what shape is the red one?"
    assert "no single answer" in repr(explorer)
    explorer.use(image=PICTURES[0])
    assert "own picture: " in repr(explorer) and "truth" not in repr(explorer)
    with pytest.raises(ValueError, match="2 answers for a model of"):
        AnswerExplorer(explorer.model, ["a", "b"], TOKENIZER, SCENE, ["x"])


# ---- captions


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_steps_end_in_the_caption_that_the_model_generates(beams: int, penalty: float) -> None:
    captioner, image = model(ImageCaptioner), to_model(PICTURES[:1], 32)
    steps, caption = decoded(captioner, image, beams, penalty, 9)
    assert caption == captioner.generate(image, 9, beams, penalty)[0]
    again = followed(captioner, image, [])
    assert [i for i, _ in steps[0].best] == [i for i, _ in again[0].best]
    for step in steps[1:]:
        for ids, total in step.beams:
            path = followed(captioner, image, ids)
            assert path[-1].beams[0][1] == pytest.approx(total, abs=1e-3)
    totals = [total for _, total in steps[-1].beams]
    assert totals == sorted(totals, reverse=True) and len(steps[-1].beams) == beams


def test_an_own_caption_is_followed_and_given_up_again() -> None:
    explorer = captioning()
    before = repr(explorer)
    explorer.use(text="a red star")
    explorer.step.value = 2
    assert "Own caption 'a red star', step 2 of 4: after 'a' " in repr(explorer)
    assert "the caption has 'red'" in repr(explorer)
    explorer.forget.click()
    explorer.step.value = 1
    assert repr(explorer) == before
    explorer.use(image=255 - PICTURES[0])
    assert repr(explorer) != before or not torch.equal(explorer.image, PICTURES[0])
    with pytest.raises(ValueError, match=r"4\.\.32"):
        CaptionExplorer(explorer.model, TOKENIZER, PICTURES[0], max_length=99)


# ---- results


def test_figures_are_read_in_every_form_and_grouped_by_the_one_step_that_differs() -> None:
    results = {
        "a": {"x": {"accuracy": 0.5, "low": 0.4, "high": 0.7, "n": 3}, "y": {"mean": 2, "sd": 1}},
        "b": {"x": 0.25, "flag": True, "text": "no"},
        "runs": [{"start": "z", "seed": 1, "mean_sd_n": {"f": [0.5, 0.1, 4]}}],
    }
    found = {path: tuple(figure[1:]) for path, figure in rows.figures(results)}
    assert found == {
        ("a", "x"): (0.5, 0.4, 0.7),
        ("a", "y"): (2, 1, 3),
        ("b", "x"): (0.25, 0.25, 0.25),
        ("runs", "start z, seed 1", "mean_sd_n", "f"): (0.5, 0.4, 0.6),
    }
    groups = rows.comparisons(results)
    assert [figure.label for figure in groups["* / x"]] == ["a", "b"]
    assert [figure.label for figure in groups["a / *"]] == ["x", "y"] and len(groups) == 2


def test_overlapping_intervals_are_called_noise_and_clear_ones_are_not() -> None:
    best, near = rows.Figure("best", 0.5, 0.4, 0.6), rows.Figure("near", 0.35, 0.25, 0.45)
    far = rows.Figure("far", 0.2, 0.1, 0.3)
    alt = rows.comparison_picture("t", [near, best, far]).alt
    assert "Largest: best. Its interval overlaps that of near: within noise." in alt
    assert "noise" not in rows.comparison_picture("t", [best, far]).alt


def test_another_file_brings_its_own_comparisons_and_a_bad_folder_is_told(tmp_path: Path) -> None:
    explorer = ablation()
    assert "first: " in repr(explorer)
    explorer.file.value = "second"
    assert repr(explorer).startswith("AblationExplorer: second: *: x 1, z 2. Largest: z.")
    explorer.path.value = str(tmp_path / "none")
    assert "no results file" in explorer.said.value
    (tmp_path / "own.json").write_text('{"m": 1, "n": 4}')
    explorer.path.value = str(tmp_path)
    assert explorer.said.value == "" and "own: *: m 1, n 4." in repr(explorer)
    (tmp_path / "own.json").write_text("{")
    explorer.path.value = f"{tmp_path}/."
    assert "own.json" in explorer.said.value


def test_the_committed_results_can_all_be_explored() -> None:
    explorer = AblationExplorer()
    for name in explorer.file.options:
        explorer.file.value = name
        assert f"{name}: " in repr(explorer)


def test_routes_and_codes_are_exported_too(tmp_path: Path) -> None:
    from minibeit3.visual_tokenizer import VQKD

    routing = RoutingExplorer([], torch.zeros(1, 3, 64, 64), torch.tensor([[0, 5, 2]]))
    routing.export_html(tmp_path / "routes.html", most=3)
    codes = CodebookExplorer(
        VQKD.from_pretrained("data_samples/checkpoints/vqkd"),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
    )
    before = repr(codes)
    codes.use(image=PICTURES[1])
    assert codes.picture.value == 3 and "In all 3 pictures" in repr(codes) != before
    routing.take(image=PICTURES[1])
    with pytest.raises(ValueError, match="tokenizer="):
        routing.take(text="a cat")
    codes.export_html(tmp_path / "codes.html", most=3)
    for name in ("routes", "codes"):
        assert "const FRAMES" in (tmp_path / f"{name}.html").read_text()
