"""Figures in notebooks: words for who cannot see them, small files, nothing lost."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image

from minibeit3.lab.figures import describe_figure, figure_both, figure_png, tell_figures

CELLS = (
    "from minibeit3 import lab\nlab.start('00')",
    "import matplotlib.pyplot as plt\nfrom minibeit3.lab import figures\ndrawn = []\n"
    "plain = figures.print_figure\n"
    "figures.print_figure = lambda *a, **k: drawn.append(1) or plain(*a, **k)\n"
    "figure, ax = plt.subplots()\n_ = ax.plot([1, 2])\n"
    "_ = ax.set(xlabel='step', ylabel='loss')",
    "import numpy as np\nfrom IPython.display import Image\nfrom minibeit3.explore import core\n"
    "Image(core.to_png(np.zeros((4, 4, 3), np.uint8)), alt='<nothing>')",
    "len(drawn)",
)


@pytest.fixture
def figure() -> Iterator[Figure]:
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2))
    left.plot([1, 2, 3], label="right")
    left.plot([3, 2, 1], label="<shuffled>")
    left.legend()
    left.set(xlabel="step", ylabel="loss", title="words")
    right.imshow(np.arange(4.0).reshape(2, 2))
    yield figure
    plt.close(figure)


def test_the_sentence_names_every_panel_axis_and_line(figure: Figure) -> None:
    said = describe_figure(figure)
    assert said == "2 panels: words · loss by step · right, <shuffled>; a picture."


def test_the_html_escapes_its_words_and_holds_the_picture(figure: Figure) -> None:
    html = str(figure_both(figure)["text/html"])
    assert "&lt;shuffled&gt;" in html and "<shuffled>" not in html
    assert html.startswith('<img alt="2 panels') and "data:image/png;base64," in html


def test_the_picture_is_smaller_and_looks_the_same(figure: Figure) -> None:
    whole = BytesIO()
    figure.savefig(whole, format="png", bbox_inches="tight")
    small = figure_png(figure)
    assert len(small) < 0.7 * len(whole.getvalue())
    before, after = (
        np.asarray(Image.open(x).convert("RGB"), float) for x in (whole, BytesIO(small))
    )
    assert before.shape == after.shape and np.abs(before - after).mean() < 1


def test_outside_a_kernel_nothing_changes() -> None:
    assert tell_figures() is False


def test_a_kernel_shows_a_figure_with_its_sentence_and_draws_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses its own
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (shown,) = notebook.cells[1].outputs
    assert 'alt="Figure: loss by step."' in shown["data"]["text/html"]
    assert shown["data"]["image/png"].strip() in json.dumps(shown["data"]["text/html"])
    (image,) = notebook.cells[2].outputs
    assert image["data"]["text/html"].startswith('<img alt="&lt;nothing&gt;" src="data:image/png')
    assert image["data"]["image/png"].strip() in image["data"]["text/html"]
    assert notebook.cells[3].outputs[0]["data"]["text/plain"] == "1"
