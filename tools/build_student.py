"""Student copies of the notebooks: python tools/build_student.py [--out notebooks/student] [NB ...]

Between `### BEGIN SOLUTION` and `### END SOLUTION` stands a stub, folded answers are gone, hidden
tests are cut, outputs are empty. The marks are those of nbgrader, and exercise cells carry its
metadata, so that a course can import either form.
"""

import argparse
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minibeit3.lab.exercises import find

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION$", re.DOTALL | re.M)
HIDDEN_TESTS = re.compile(
    r"^ *### BEGIN HIDDEN TESTS\n.*?^ *### END HIDDEN TESTS\n?", re.DOTALL | re.M
)
FOLDED = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
STUB = "...  # your answer"
BLANK = "*Your answer:*"
MARKS = ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "<details>")


def strip_code(source: str) -> tuple[str, list[str]]:
    """A cell with stubs in place of its solutions, and the solutions in reading order.

    ValueError for a mark without its partner: half a solution would stay in the copy.
    """
    solutions = [match[2] for match in SOLUTION.finditer(source)]
    bare = SOLUTION.sub(lambda match: match[1] + STUB, HIDDEN_TESTS.sub("", source))
    if left := [mark for mark in MARKS[:3] if mark in bare]:
        raise ValueError(f"a mark without its partner ({', '.join(left)}) in the cell:\n{source}")
    return bare, solutions


def fill_code(stripped: str, solutions: Sequence[str]) -> str:
    """The inverse of `strip_code`, with the marks; ValueError when the numbers differ."""
    parts = re.split(rf"^( *){re.escape(STUB)}$", stripped, flags=re.M)
    if len(parts) // 2 != len(solutions):
        raise ValueError(f"{len(parts) // 2} stubs for {len(solutions)} solutions")
    text = parts[0]
    for indent, rest, solution in zip(parts[1::2], parts[2::2], solutions, strict=True):
        text += f"{indent}### BEGIN SOLUTION\n{solution}{indent}### END SOLUTION{rest}"
    return text


def strip_text(source: str) -> tuple[str, list[str]]:
    """A markdown cell whose folded parts are questions with room for an answer, and the answers."""
    answers = [match[2] for match in FOLDED.finditer(source)]
    return FOLDED.sub(lambda match: f"**{match[1]}**\n\n{BLANK}", source), answers


def strip(notebook: NotebookNode) -> NotebookNode:
    """The student's copy of a notebook; the one that is passed in stays as it is."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = strip_text(cell.source)[0]
            continue
        cell.source, solutions = strip_code(cell.source)
        cell.outputs, cell.execution_count = [], None
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "nbval-check-output"]
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if solutions:
            cell.metadata["nbgrader"] = grading(cell.source)
    copy.metadata["minibeit3"]["student"] = True
    return copy


def grading(source: str) -> dict[str, object]:
    """nbgrader's metadata of an exercise cell: as many points as the exercise is difficult."""
    name = re.search(r'lab\.check\("(\w+)"', source)
    if name is None:
        raise ValueError(f"a cell with a solution has no lab.check:\n{source}")
    keys = {"schema_version": 3, "grade": True, "solution": True, "locked": False, "task": False}
    return {**keys, "grade_id": name[1], "points": find(name[1]).difficulty}


def build(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write a student's copy of each notebook to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in paths:
        written.append(out / path.name)
        nbformat.write(strip(nbformat.read(path, as_version=4)), written[-1])
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "notebooks", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("*.ipynb"))
    )
    parser.add_argument("--out", type=Path, default=NOTEBOOKS / "student")
    given = parser.parse_args()
    for file in build(given.notebooks, given.out):
        print(file)
