"""The contract of the notebooks, checked on the files (they are run by nbval in `make test`)."""

from pathlib import Path

import nbformat
import pytest

from minibeit3.lab.exercises import exercises
from tools.execute_notebooks import COMPARED, execute

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_it_opens_with_claim_card_and_objectives_and_starts_the_lab(notebook) -> None:
    number, first = notebook.metadata["minibeit3"]["number"], notebook.cells[0].source
    assert first.startswith(f"# {number} · ")
    for part in ("**Claim.**", "CPU-seconds", "After this notebook you can"):
        assert part in first
    assert 4 <= first.count("\n- **") <= 6
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert f'lab.start("{number}")' in code[0].source


def test_code_cells_are_short_and_were_run_without_error(notebook) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip()]
            marks = 3 if "exercise" in cell.metadata.get("tags", []) else 0
            assert len(lines) <= 15 + marks, cell.source
            assert cell.execution_count
            kinds = {output.output_type for output in cell.outputs}
            names = {o.get("name") for o in cell.outputs}
            assert "error" not in kinds and "stderr" not in names


def test_exercises_are_those_of_the_metadata_and_have_solutions(notebook) -> None:
    cells = [c for c in notebook.cells if "exercise" in c.metadata.get("tags", [])]
    named = notebook.metadata["minibeit3"]["exercises"]
    assert len(cells) == len(named) and 2 <= len(named) <= 4
    for cell, name in zip(cells, named, strict=True):
        assert name in exercises() and f'lab.check("{name}"' in cell.source
        assert "### BEGIN SOLUTION" in cell.source and "### END SOLUTION" in cell.source
        assert "right" in str(cell.outputs)


def test_it_asks_to_predict_and_states_limits_and_questions(notebook) -> None:
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert "**Predict first" in text and "## Limits" in text
    assert text.count("<details>") >= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # nbclient's
def test_a_refresh_renews_compared_cells_and_leaves_the_others(
    tmp_path: Path,
) -> None:
    made, path = nbformat.v4.new_notebook(), tmp_path / "made.ipynb"
    old = [nbformat.v4.new_output("stream", text="old\n")]
    for tags in ([COMPARED], []):
        cell = nbformat.v4.new_code_cell("print('new')", outputs=old, metadata={"tags": tags})
        made.cells.append(cell)
    nbformat.write(made, path)
    execute(path, keep=True, refresh=True)
    told = [cell.outputs[0].text for cell in nbformat.read(path, as_version=4).cells]
    assert told == ["new\n", "old\n"]
