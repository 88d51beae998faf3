"""Slides: one offline page per notebook, with every tagged cell and no answers."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools/build_slides.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_tagged_cell_is_on_an_offline_page_without_answers(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    tagged = [c for c in notebook.cells if "slide" in c.metadata.get("tags", [])]
    found = TOOL["slides"](notebook)
    page = TOOL["page"](path.stem, found)
    assert len(found) == len(tagged) == page.count("<section>")
    assert "<details>" not in page and not re.findall(r'(?:src|href)="(?!data:|http|#)', page)
    assert not re.findall(r'src="http|<link|@import', page)
    assert (
        page.count("<img ") == page.count('<img alt="') == len(re.findall(r'<img alt="[^"]', page))
    )


def cells(*tags: str) -> nbformat.NotebookNode:
    made = [nbformat.v4.new_markdown_cell(f"## {tag}") for tag in tags]
    for cell, tag in zip(made, tags, strict=True):
        cell.metadata["tags"] = [tag]
    return nbformat.v4.new_notebook(cells=made)


def test_slide_more_adds_to_the_slide_before_and_other_cells_are_left_out() -> None:
    first, second = TOOL["slides"](cells("slide", "slide-more", "exercise", "slide"))
    assert "slide-more" in first and "exercise" not in first + second


def test_printed_text_is_escaped() -> None:
    cell = nbformat.v4.new_code_cell("x", outputs=[])
    cell.outputs = [nbformat.v4.new_output("stream", text="<script>alert(1)</script>")]
    assert "<script>" not in TOOL["shown"](cell, "x")


def test_an_empty_slide_or_one_that_continues_nothing_is_refused() -> None:
    empty = cells("slide")
    empty.cells[0].source = "| a | table |"
    for notebook in (empty, cells("slide-more", "slide")):
        with pytest.raises(ValueError, match="nothing to show"):
            TOOL["slides"](notebook)


def test_a_notebook_without_tags_gets_no_page(tmp_path: Path) -> None:
    nbformat.write(cells("exercise"), tmp_path / "plain.ipynb")
    assert TOOL["build"]([tmp_path / "plain.ipynb"], tmp_path / "out") == []
