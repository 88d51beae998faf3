"""Progress of a learner in one file, the score, and a teacher's private checks."""

import json
from pathlib import Path

import pytest

from minibeit3 import lab
from minibeit3.lab import progress
from minibeit3.lab.exercises import exercises
from minibeit3.lab.notebook_00 import expert_of


def own(config, layer, is_image, is_pair):
    return expert_of(config, layer, is_image, is_pair)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "class" / "ada.json"
    monkeypatch.setenv(progress.PROGRESS, str(path))
    return path


def test_tries_hints_and_the_right_answer_are_kept_by_learner(file: Path) -> None:
    lab.check("expert_of", lambda *_: "V")
    lab.hint("expert_of")
    lab.check("expert_of", own)
    lab.check("expert_of", lambda *_: "V")
    kept = json.loads(file.read_text())
    assert kept["learner"] == "ada" and [p.name for p in file.parent.iterdir()] == ["ada.json"]
    assert kept["exercises"] == {"expert_of": {"tries": 3, "right": True, "hints": 1}}
    possible = sum(e.difficulty for e in exercises().values())
    assert lab.score() == f"2 of {possible} points; right: expert_of"


def test_handing_in_the_reference_and_leaving_the_stub_earn_nothing(file: Path) -> None:
    assert lab.check("expert_of", lab.use_reference("expert_of")).right
    lab.check("attend", ...)
    assert lab.score().startswith("0 of ")
    assert json.loads(file.read_text())["exercises"].keys() == {"expert_of"}


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.PROGRESS, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_kept", {})
    lab.check("expert_of", own)
    assert lab.score().endswith("right: expert_of") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"format": 2, "exercises": {}}',
        '{"format": 1, "exercises": {"attend": {"tries": "many"}}}',
        '{"format": 1, "exercises": []}',
    ],
)
def test_a_file_of_another_form_is_refused_and_kept(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ValueError, match=r"ada\.json"):
        lab.check("expert_of", own)
    assert file.read_text() == content


def test_a_private_check_is_asked_after_the_public_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.py"
    secret.write_text("def check_expert_of(answer):\n    assert not answer, 'too slow'\n")
    monkeypatch.setenv(progress.PRIVATE, str(secret))
    assert lab.check("expert_of", own).message == "too slow"
    assert "too slow" not in lab.check("expert_of", lambda *_: "V").message
    assert lab.check("attend", lab.use_reference("attend")).right


def test_a_private_file_that_is_missing_or_empty_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.py").write_text("")
    for name in ("missing.py", "empty.py"):
        monkeypatch.setenv(progress.PRIVATE, str(tmp_path / name))
        with pytest.raises(ValueError, match=name):
            lab.check("expert_of", own)
