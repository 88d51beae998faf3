"""A guesser that reads but does not look stays at chance, and so does one that sees half."""

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow
TOOL = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools/scene_blind_lines.py"))


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, float]]:
    return TOOL["question_lines"](
        TOOL["posed"]("train", 0, 3600), TOOL["posed"]("test", 0, 3000), "shapes"
    )


def test_the_question_alone_stays_within_two_points_of_chance(
    lines: dict[str, dict[str, float]],
) -> None:
    assert abs(lines["question only"]["all"] - lines["chance"]["all"]) < 0.02
    assert abs(lines["majority"]["all"] - lines["chance"]["all"]) < 0.03


def test_the_words_of_a_biased_set_would_be_caught() -> None:
    """The same classifier on answers that lean on a word: the check above has teeth."""
    items = TOOL["posed"]("train", 0, 1200)
    asked = [(q.ask(TOOL["world_named"]("shapes")), a) for q, a, *_ in items if a in ("yes", "no")]
    leaning = ("star", "ring", "red")
    biased = [(text, "yes" if any(w in text for w in leaning) else a) for text, a in asked]
    texts, answers = zip(*biased, strict=True)
    half = len(texts) // 2
    guess = TOOL["words_only"](texts[:half], answers[:half], texts[half:])
    assert (guess == np.array(answers[half:])).mean() > 0.6


def test_the_picture_alone_does_not_answer_yes_no_questions(
    lines: dict[str, dict[str, float]],
) -> None:
    for kind in ("exist", "relation", "more"):
        assert lines["image only"][kind] < 0.62, kind


def test_a_statement_alone_is_at_chance() -> None:
    SceneStatements = TOOL["SceneStatements"]
    lines = TOOL["statement_lines"](SceneStatements("train", 1600), SceneStatements("test", 1600))
    assert abs(lines["statement only"]["all"] - 0.5) < 0.02
    assert lines["left picture only"]["exactly one"] == 0.5
