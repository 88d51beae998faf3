"""The teachers' guides fit the notebooks: every exercise, the minutes, answers at three grades."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "notebooks/instructor").glob("[0-9]*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_names_every_exercise_adds_up_and_grades_answers(guide: Path) -> None:
    text = guide.read_text()
    meta = nbformat.read(ROOT / f"notebooks/{guide.stem}.ipynb", as_version=4).metadata.minibeit3
    assert re.findall(r"^- `(\w+)`: ", text, re.M) == meta.exercises
    minutes = [int(m) for m in re.findall(r"^\| [^*].* \| (\d+) \|$", text, re.M)]
    assert sum(minutes) == meta.minutes and f"**{meta.minutes}**" in text
    assert all(f"- **{grade}**: " in text for grade in ("Full", "Partial", "Not yet"))


def test_lesson_plans_add_up_and_name_notebooks_that_exist() -> None:
    text = (ROOT / "notebooks/instructor/lesson_plans.md").read_text()
    plans = re.split(r"^## ", text, flags=re.M)[1:]
    for plan, length in zip(plans, (45, 90), strict=False):
        assert sum(int(m) for m in re.findall(r"^\| (\d+) \| ", plan, re.M)) == length
    numbers = {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\b[01]\d\b", plans[2])) <= numbers and len(GUIDES) >= 6
