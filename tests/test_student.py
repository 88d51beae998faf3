"""Student copies: nothing leaks, nothing is lost, and they run on without any answer."""

import ast
import copy
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools/build_student.py"))
strip, strip_code, strip_text, fill_code = (
    TOOL[name] for name in ("strip", "strip_code", "strip_text", "fill_code")
)
MARKS, STUB, BLANK = TOOL["MARKS"], TOOL["STUB"], TOOL["BLANK"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_no_solution_answer_output_or_mark_leaks_into_the_copy(notebook) -> None:
    student = strip(notebook)
    nbformat.validate(student)
    text = "\n".join(cell.source for cell in student.cells)
    assert not [mark for mark in MARKS if mark in text]
    assert all(not c.outputs and c.execution_count is None for c in student.cells if "outputs" in c)
    for cell in notebook.cells:
        taken = strip_code(cell.source) if cell.cell_type == "code" else strip_text(cell.source)
        assert not [part for part in taken[1] if part.strip() in text]
    named = [c.metadata.nbgrader.grade_id for c in student.cells if "nbgrader" in c.metadata]
    assert named == notebook.metadata.minibeit3.exercises
    assert text.count(STUB) >= len(named) and text.count(BLANK) >= 3


def test_stub_and_solution_make_the_source_and_the_source_stays(notebook) -> None:
    before = copy.deepcopy(notebook)
    student = strip(notebook)
    assert notebook == before and len(student.cells) == len(notebook.cells)
    for cell, stripped in zip(notebook.cells, student.cells, strict=True):
        if cell.cell_type == "code":
            assert fill_code(stripped.source, strip_code(cell.source)[1]) == cell.source


def test_a_stub_is_valid_python_and_no_later_cell_needs_its_answer(notebook) -> None:
    owed: dict[str, Any] = {}
    for cell in strip(notebook).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        nodes = list(ast.walk(tree))
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        made = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)} | stored
        read = {n.id for n in nodes if isinstance(n, ast.Name)} - made
        if STUB in cell.source:
            owed |= dict.fromkeys(made, cell.source)
        else:
            owed = {name: source for name, source in owed.items() if name not in made}
            assert not read & owed.keys(), f"{read & owed.keys()} comes from a stub:\n{cell.source}"


SOURCE = """def f(x):
    y = 1
    ### BEGIN SOLUTION
    return x + y
    ### END SOLUTION


lab.check("attend", f)
### BEGIN HIDDEN TESTS
assert f(1) == 2
### END HIDDEN TESTS
"""


def test_a_stub_keeps_its_indentation_and_hidden_tests_are_cut() -> None:
    bare, solutions = strip_code(SOURCE)
    assert bare == f'def f(x):\n    y = 1\n    {STUB}\n\n\nlab.check("attend", f)\n'
    assert solutions == ["    return x + y\n"]


@pytest.mark.parametrize("mark", ["BEGIN SOLUTION", "END SOLUTION", "BEGIN HIDDEN TESTS"])
def test_a_mark_without_its_partner_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="without its partner"):
        strip_code(f"x = 1\n### {mark}\ny = 2\n")


def test_a_solution_without_a_check_is_refused() -> None:
    code = nbformat.v4.new_code_cell("### BEGIN SOLUTION\nx = 1\n### END SOLUTION")
    lost = nbformat.v4.new_notebook(cells=[code], metadata={"minibeit3": {"exercises": []}})
    with pytest.raises(ValueError, match=r"no lab\.check"):
        strip(lost)


def test_copies_are_written_beside_each_other(tmp_path: Path) -> None:
    written = TOOL["build"](NOTEBOOKS[:1], tmp_path / "student")
    assert [file.name for file in written] == [NOTEBOOKS[0].name]
    assert nbformat.read(written[0], as_version=4).metadata.minibeit3.student
